"""Cityscapes: scores of the official script, and predictions packed for the evaluation server."""
