"""Training: builders from config sections, training steps, the loop, and devices."""
