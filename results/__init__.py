"""The study of transfer: its commands, runs, figures and findings."""
