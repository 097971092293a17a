"""Measures of pictures: scores, perceptual hashes, digests and embeddings, and the side table that holds them."""
