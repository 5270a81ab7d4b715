"""Grading programs."""
