"""A run as it goes on: the loop, its environments, devices, signals and logs."""
