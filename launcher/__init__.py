"""Fine-tune a language or vision-language model on Hugging Face Jobs with one command."""

__version__ = "0.1.0"
