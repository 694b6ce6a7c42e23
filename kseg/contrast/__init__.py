"""Contrastive learning: the InfoNCE kernel, samplers, the memory bank and one file per method."""
