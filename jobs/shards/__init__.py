"""Shard jobs on Ray Data: one task a shard, a pool of actors, and reports on disk that decide what is done."""
