"""Where workers write how far their shards are, and the driver reads it: Ray's own key-value store.

An actor would be one process more, and on a small machine each process costs a job a second of its start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

from cluster import ray_internals

_NAMESPACE = "striate"
_BEGUN = "#begun"


@dataclass(frozen=True)
class Count:
    """Work done at one moment: shards committed; pictures, bytes, drops and rejects including shards in work.

    `beats` counts the heartbeats of workers, which go on while a shard takes long.
    """

    shards: int = 0
    pictures: int = 0
    image_bytes: int = 0
    dropped: int = 0
    rejected: int = 0
    beats: int = 0

    @classmethod
    def total(cls, counts: Iterable[Count]) -> Count:
        """The sum of many."""
        columns = zip(*(astuple(count) for count in counts), strict=True)
        return cls(*(sum(column) for column in columns))


def put_count(run: str, shard: str, count: Count) -> None:
    """Say how far a shard of a run is."""
    ray_internals.kv_put(_key(run, shard), json.dumps(asdict(count)).encode(), namespace=_NAMESPACE)


def begin_shard(run: str, shard: str) -> int:
    """Say that a shard is begun; gives how often it was begun by now, this time counted."""
    key = _key(run, f"{shard}{_BEGUN}")
    times = int(ray_internals.kv_get(key, namespace=_NAMESPACE) or 0) + 1
    ray_internals.kv_put(key, str(times).encode(), namespace=_NAMESPACE)
    return times


def end_shard(run: str, shard: str) -> None:
    """Say that a shard is done. What is on the board is listed again and again: it holds only what is in work."""
    for key in (_key(run, shard), _key(run, f"{shard}{_BEGUN}")):
        ray_internals.kv_delete(key, namespace=_NAMESPACE)


def counts_in_progress(run: str) -> list[Count]:
    """How far the shards are that were begun and have not ended."""
    keys = ray_internals.kv_keys(_key(run, ""), namespace=_NAMESPACE)
    values = [ray_internals.kv_get(key, namespace=_NAMESPACE) for key in keys if not key.endswith(_BEGUN)]
    return [Count(**json.loads(value)) for value in values if value is not None]


def publish(run: str, values: Mapping[str, Any], name: str = "now") -> None:
    """Say anything else about a run; the same name is told anew."""
    ray_internals.kv_put(_key(run, f"told/{name}"), json.dumps(values).encode(), namespace=_NAMESPACE)


def published(run: str) -> dict[str, dict[str, Any]]:
    """What was told of a run, by name, in order of the names."""
    keys = ray_internals.kv_keys(_key(run, "told/"), namespace=_NAMESPACE)
    values = {key: ray_internals.kv_get(key, namespace=_NAMESPACE) for key in keys}
    start = len(_key(run, "told/"))
    return {key[start:]: json.loads(value) for key, value in values.items() if value is not None}


def clear(run: str) -> None:
    """Forget a run."""
    ray_internals.kv_delete_prefix(_key(run, ""), namespace=_NAMESPACE)


def _key(run: str, shard: str) -> str:
    return f"{run}:{shard}"
