"""Models with their weights, which predict on images and scans."""
