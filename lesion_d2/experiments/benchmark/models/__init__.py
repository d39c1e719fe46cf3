"""Benchmarks of models: training steps, inference and memory."""
