"""Finished classifiers: the files of a bundle, how it is loaded, and what it predicts."""
