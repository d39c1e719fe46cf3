"""The steps of a training: schedule, clipping, mixed precision, compilation."""
