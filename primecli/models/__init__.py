"""Models: identity, loading, scoring, checkpoints."""
