"""What each stage does: its options and one function that runs it."""
