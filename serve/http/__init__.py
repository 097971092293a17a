"""What every HTTP application of the server shares: bodies, keys, limits, errors, logs and their description."""
