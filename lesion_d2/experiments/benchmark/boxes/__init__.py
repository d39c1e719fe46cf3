"""What is measured of boxes: curves, clusters, linked slices, anchors, and boxes in 3-D."""
