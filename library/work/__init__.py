"""The work on one shard: one shard in, one shard and one report out. Nothing here knows Ray."""
