"""The study of transfer: its commands, and the runs and figures they gave."""
