"""Adapters of simulators: each gives a Gymnasium environment with `picture`."""
