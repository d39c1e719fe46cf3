"""Benchmarks of loading: slices, masks, annotations and volumes."""
