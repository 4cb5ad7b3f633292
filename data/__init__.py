"""What lies on disk: episodes, checkpoints and module files."""
