"""Broken and hostile input for every command: `python -m tests.fuzz --seed N`. docs/architecture.md explains it."""
