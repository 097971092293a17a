"""Benchmarks of memory, requests and time at many shards."""
