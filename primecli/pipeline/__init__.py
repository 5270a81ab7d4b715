"""What every stage shares: the pipe, inputs, recipes, summaries, progress."""
