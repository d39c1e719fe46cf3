"""Shared code of the tools: arguments, runs on disk, trainings."""
