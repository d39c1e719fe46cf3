"""Loads all images of volumes in order, reading each slice once."""
