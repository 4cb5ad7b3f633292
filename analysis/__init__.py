"""Looking at runs and agents: curves, scores, figures, episodes played."""
