"""A campaign of malformed files and of runs that are killed: ``python -m tests.faults --help``."""
