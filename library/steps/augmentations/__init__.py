"""Augmentations: steps whose parameters are drawn anew for each picture."""
