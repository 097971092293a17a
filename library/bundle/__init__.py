"""Finished classifiers: what a bundle folder holds, how it is loaded, and what it predicts."""
