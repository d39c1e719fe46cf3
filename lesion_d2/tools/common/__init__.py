"""What several tools share: arguments, runs on disk, trainings."""
