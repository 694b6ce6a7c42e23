"""Evaluation: predictions at full resolution, scores, comparisons, and pictures of them."""
