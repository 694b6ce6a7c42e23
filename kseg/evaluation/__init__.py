"""Evaluation: full-resolution predictions, scores, comparisons, and visualizations."""
