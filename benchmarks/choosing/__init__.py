"""Benchmarks of choosing pictures."""
