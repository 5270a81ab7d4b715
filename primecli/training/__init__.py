"""What the updates share: trainer, optimizer, memory, the run."""
