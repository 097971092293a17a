"""The progress of shards, which workers write to Ray's own key-value store and the driver reads.

An actor would be one more process, and on a small machine each process adds a second to the start of a job.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

from cluster import ray_internals

_NAMESPACE = "striate"
_BEGUN, _PUBLISHED = "#begun", "published/"


@dataclass(frozen=True)
class Count:
    """Work done at one moment: committed shards; pictures, bytes, drops and rejects, including unfinished shards.

    `beats` counts the heartbeats of workers, which continue while a shard takes long.
    """

    shards: int = 0
    pictures: int = 0
    image_bytes: int = 0
    dropped: int = 0
    rejected: int = 0
    beats: int = 0

    @classmethod
    def total(cls, counts: Iterable[Count]) -> Count:
        """Returns the sum of counts."""
        columns = zip(*(astuple(count) for count in counts), strict=True)
        return cls(*(sum(column) for column in columns))


def put_count(run: str, shard: str, count: Count) -> None:
    """Writes the progress of a shard of a run."""
    ray_internals.kv_put(_key(run, shard), json.dumps(asdict(count)).encode(), namespace=_NAMESPACE)


def begin_shard(run: str, shard: str) -> int:
    """Records the start of a shard; returns how often it was started, this time included."""
    key = _key(run, f"{shard}{_BEGUN}")
    times = int(ray_internals.kv_get(key, namespace=_NAMESPACE) or 0) + 1
    ray_internals.kv_put(key, str(times).encode(), namespace=_NAMESPACE)
    return times


def end_shard(run: str, shard: str) -> None:
    """Removes a finished shard: the driver lists the entries again and again, so only unfinished shards stay."""
    for key in (_key(run, shard), _key(run, f"{shard}{_BEGUN}")):
        ray_internals.kv_delete(key, namespace=_NAMESPACE)


def counts_in_progress(run: str) -> list[Count]:
    """Returns the progress of the shards that have begun and not ended."""
    keys = ray_internals.kv_keys(_key(run, ""), namespace=_NAMESPACE)
    values = [ray_internals.kv_get(key, namespace=_NAMESPACE) for key in keys if not key.endswith(_BEGUN)]
    return [Count(**json.loads(value)) for value in values if value is not None]


def publish(run: str, values: Mapping[str, Any], name: str = "now") -> None:
    """Writes other facts about a run; they replace earlier ones of the same name."""
    ray_internals.kv_put(_key(run, f"{_PUBLISHED}{name}"), json.dumps(values).encode(), namespace=_NAMESPACE)


def published(run: str) -> dict[str, dict[str, Any]]:
    """Returns the published facts of a run by name, in order of the names."""
    keys = ray_internals.kv_keys(_key(run, _PUBLISHED), namespace=_NAMESPACE)
    values = {key: ray_internals.kv_get(key, namespace=_NAMESPACE) for key in keys}
    start = len(_key(run, _PUBLISHED))
    return {key[start:]: json.loads(value) for key, value in values.items() if value is not None}


def clear(run: str) -> None:
    """Removes all entries of a run."""
    ray_internals.kv_delete_prefix(_key(run, ""), namespace=_NAMESPACE)


def _key(run: str, shard: str) -> str:
    return f"{run}:{shard}"
