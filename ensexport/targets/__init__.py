"""Batched graph -> files: one target format per module."""
