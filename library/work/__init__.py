"""The work on one shard: one shard in, one shard or sums and one report out. Nothing here imports Ray."""
