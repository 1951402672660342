"""One file a verb of the command line, read top to bottom."""
