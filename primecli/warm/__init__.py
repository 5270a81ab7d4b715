"""`primecli warm`: stages are forked from a helper that has already imported everything they need."""
