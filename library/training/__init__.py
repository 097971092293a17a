"""Training without Ray: what happens to one batch, in which order the pictures come, what is kept of it."""
