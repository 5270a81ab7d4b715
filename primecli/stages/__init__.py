"""The stages, one per file: its options, and the function that runs it."""
