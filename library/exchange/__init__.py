"""Datasets of other tools: reading, writing, merging, and where a picture came from."""
