"""Training steps: schedule, gradient clipping, mixed precision, compilation."""
