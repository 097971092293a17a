"""Benchmarks of serving and of batch prediction."""
