"""Reading a model's `config.json`: its decoder, the linear layers of special kinds, what turns pictures into tokens."""
