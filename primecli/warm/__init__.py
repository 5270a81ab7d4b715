"""`primecli warm`: stages forked from a helper that has imported everything."""
