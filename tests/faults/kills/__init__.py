"""Runs that are killed, interrupted, without room on the disk, or two in one place."""
