"""Augmentations: steps that draw random parameters for each picture."""
