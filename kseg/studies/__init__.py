"""Studies: a design of arms and seeds, its results on disk, statistics and tables."""
