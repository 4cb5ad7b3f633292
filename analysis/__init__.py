"""Curves and scores of many runs."""
