"""Reinforcement learning of language models with implicit process rewards, as a shell pipeline."""

__version__ = "0.1.0"
