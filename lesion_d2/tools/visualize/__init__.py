"""Pictures of a data set, of a run's detections, of attention; ``__main__`` is the command."""
