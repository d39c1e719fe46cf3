"""All slices of volumes, each read once, and their images in order."""
