"""Training: state, optimizer, the pure step, and the loop that drives it."""
