"""Kills and faults at every file operation of every stage: `make chaos`. docs/architecture.md explains it."""
