"""One run's life after it was submitted: found, explained, compared, done again."""
