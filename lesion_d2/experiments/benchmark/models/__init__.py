"""What is measured of models: training steps, inferences and their memory."""
