"""Benchmarks, the GPU check, and experiments of the papers."""
