"""Scans in, findings out; ``__main__`` is the command."""
