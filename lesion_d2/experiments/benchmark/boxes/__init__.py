"""Benchmarks of box operations: FROC, clustering, linking, anchors, and boxes in 3-D."""
