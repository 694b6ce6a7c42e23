"""Looking at trained networks: what they cost, what they learned."""
