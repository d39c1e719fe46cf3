"""Pictures of data, detections, hard negatives, attention; ``__main__`` is the command."""
