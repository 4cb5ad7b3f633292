"""Files of a log directory: episodes, checkpoints, modules; and the replay."""
