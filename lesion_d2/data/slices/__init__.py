"""CT slices: files on disk, Hounsfield units in memory, and model input."""
