"""Models: their identity, loading, scoring and checkpoints."""
