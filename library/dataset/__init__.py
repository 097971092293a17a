"""Datasets: Parquet shards, the reports and the manifest beside them, and who may write them."""
