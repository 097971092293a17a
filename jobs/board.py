"""Where workers write how far their shards are. It imports next to nothing: it is a process of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Work done at one moment: shards committed; pictures, bytes, drops and rejects including shards in work."""

    shards: int = 0
    pictures: int = 0
    image_bytes: int = 0
    dropped: int = 0
    rejected: int = 0


class Board:
    """Where workers write how far their shards are."""

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}

    def put(self, shard: str, count: Count) -> None:
        self._counts[shard] = count

    def snapshot(self, shards: set[str]) -> dict[str, Count]:
        return {shard: self._counts[shard] for shard in shards & self._counts.keys()}

    def forget(self, shards: set[str]) -> None:
        for shard in shards:
            self._counts.pop(shard, None)
