"""Find lesions in scans; ``__main__`` is the command."""
