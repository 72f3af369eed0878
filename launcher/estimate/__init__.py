"""What a run needs and takes, as pure functions: memory, seconds, dollars, rows."""
