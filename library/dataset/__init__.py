"""Datasets: Parquet shards with their reports and manifest, and the leases and claims of the jobs that write them."""
