"""The kinds of malformed files, by their names."""
