"""What a model is worth: statistics of its samples, and the best that any model could do."""
