"""Evaluation in 3-D: lesions and detections as boxes in volumes."""
