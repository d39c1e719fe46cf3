"""Measurements of this project: its speed, its GPU rows, and the papers' experiments."""
