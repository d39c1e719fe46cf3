"""Prepared slices: a series' PNG files in one file, which is read in a fraction of the time."""
