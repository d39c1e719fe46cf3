"""Tests and timings of this project on a machine with a GPU; ``__main__`` is the command line."""
