"""Benchmarks of this project on one machine; ``__main__`` is the command line."""
