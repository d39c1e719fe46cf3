"""Prepared slices: a series' PNG files in one file, which is much faster to read."""
