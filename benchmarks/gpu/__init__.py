"""Training, prediction and serving on a GPU: one command that measures all of it in eight minutes."""
