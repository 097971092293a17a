"""Benchmarks, and the programs that striate is compared with. See README.md."""
