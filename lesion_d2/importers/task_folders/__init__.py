"""Shared code of the importers of task folders (nnDetection, nnU-Net, Decathlon)."""
