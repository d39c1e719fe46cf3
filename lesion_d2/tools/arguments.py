"""Types of command line arguments."""

import argparse


def positive(text: str) -> int:
    """An integer of at least 1, for ``add_argument(type=positive)``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
