"""Training: runs a recipe on Ray Train."""
