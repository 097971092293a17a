"""Batches for training workers: from shared memory where the pictures fit, else streamed through Ray Data."""
