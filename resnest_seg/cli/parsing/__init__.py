"""Command lines: the options that verbs share, and every key of a config as an option."""
