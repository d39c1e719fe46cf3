"""Files, errors, processes and figures: what every room uses."""
