"""Augmentations of images and of their annotations."""
