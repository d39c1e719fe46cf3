"""Trained models that predict on images and scans."""
