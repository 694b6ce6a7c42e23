"""Analysis of trained networks: their cost, features, failures, and an HTML report."""
