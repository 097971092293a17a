"""Where workers write how far their shards are, and the driver reads it: Ray's own key-value store.

An actor would be one process more, and on a small machine each process costs a job a second of its start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

from ray.experimental import internal_kv

_NAMESPACE = b"striate"
_BEGUN = "#begun"


@dataclass(frozen=True)
class Count:
    """Work done at one moment: shards committed; pictures, bytes, drops and rejects including shards in work."""

    shards: int = 0
    pictures: int = 0
    image_bytes: int = 0
    dropped: int = 0
    rejected: int = 0

    @classmethod
    def total(cls, counts: Iterable[Count]) -> Count:
        """The sum of many."""
        columns = zip(*(astuple(count) for count in counts), strict=True)
        return cls(*(sum(column) for column in columns))


def put(run: str, shard: str, count: Count) -> None:
    """Say how far a shard of a run is."""
    _kv("put")(_key(run, shard), json.dumps(asdict(count)).encode(), namespace=_NAMESPACE)


def begin(run: str, shard: str) -> int:
    """Say that a shard is begun; gives how often it was begun by now, this time counted."""
    key = _key(run, f"{shard}{_BEGUN}")
    times = int(_kv("get")(key, namespace=_NAMESPACE) or 0) + 1
    _kv("put")(key, str(times).encode(), namespace=_NAMESPACE)
    return times


def end(run: str, shard: str) -> None:
    """Say that a shard is done. What is on the board is listed again and again: it holds only what is in work."""
    for key in (_key(run, shard), _key(run, f"{shard}{_BEGUN}")):
        _kv("del")(key, namespace=_NAMESPACE)


def in_work(run: str) -> list[Count]:
    """How far the shards are that were begun and have not ended."""
    keys = [bytes(key) for key in _kv("list")(_key(run, ""), namespace=_NAMESPACE)]
    values = [_kv("get")(key, namespace=_NAMESPACE) for key in keys if not key.endswith(_BEGUN.encode())]
    return [Count(**json.loads(value)) for value in values if value is not None]


def tell(run: str, values: Mapping[str, Any], name: str = "now") -> None:
    """Say anything else about a run; the same name is told anew."""
    _kv("put")(_key(run, f"told/{name}"), json.dumps(values).encode(), namespace=_NAMESPACE)


def told(run: str) -> dict[str, dict[str, Any]]:
    """What was told of a run, by name, in order of the names."""
    keys = sorted(bytes(key) for key in _kv("list")(_key(run, "told/"), namespace=_NAMESPACE))
    values = {key: _kv("get")(key, namespace=_NAMESPACE) for key in keys}
    start = len(_key(run, "told/"))
    return {key[start:].decode(): json.loads(value) for key, value in values.items() if value is not None}


def clear(run: str) -> None:
    """Forget a run."""
    _kv("del")(_key(run, ""), del_by_prefix=True, namespace=_NAMESPACE)


def _kv(verb: str) -> Any:
    # Ray's libraries use these functions among themselves; their names begin with an underscore all the same.
    return getattr(internal_kv, f"_internal_kv_{verb}")


def _key(run: str, shard: str) -> bytes:
    return f"{run}:{shard}".encode()
