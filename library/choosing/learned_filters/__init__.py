"""Learned kernels: beside the textbook's, on a page, and as filters."""
