"""Benchmarks of the shard jobs."""
