"""What importers of task folders (nnDetection, nnU-Net, Decathlon) have in common."""
