"""Assigns pictures to splits and shards by their keys alone, before any picture is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library import storage
from library.dataset.shards import shard_name
from library.dataset.task import ShardTask
from library.errors import UsageError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them


#: Size of a shard by default; smaller where that would give fewer than MIN_SHARDS.
DEFAULT_SHARD_BYTES = 128 * 2**20
MIN_SHARDS = 16
MIN_SHARD_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Layout:
    """How a listing is divided into splits and shards.

    Attributes:
        shard_bytes: a shard is closed once it holds this many bytes of pictures; None for a size that fits the source.
        seed: seed of the order in which pictures are stored.
        fractions: fraction of each split by its name, summing to 1; empty to use the source's own splits.
    """

    shard_bytes: int | None = None
    seed: int = 0
    fractions: Mapping[str, float] | None = None


def parse_fractions(text: str) -> dict[str, float]:
    """Reads `train=0.8,val=0.1,test=0.1` as the fraction of each split by its name.

    Raises:
        UsageError: a name is repeated or invalid, a fraction is not above 0, or they do not sum to 1.
    """
    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        name = name.strip()
        try:
            fraction = float(number)
        except ValueError:
            fraction = 0.0
        if not name.isidentifier() or name in fractions or not 0 < fraction <= 1:
            raise UsageError(f"split '{text}': '{part.strip()}' is wrong; write e.g. train=0.8,val=0.1,test=0.1")
        fractions[name] = fraction
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise UsageError(f"split '{text}': the fractions sum to {sum(fractions.values()):g}, not to 1")
    return fractions


def plan(index: pa.Table, destination: str, layout: Layout) -> list[ShardTask]:
    """Divides a listing into shards.

    Pictures are ordered by `blake2b(seed, key)`, so no shard is sorted by class, whatever the source's order. Rows that
    are cheap only when read together (`block`: a Parquet row group) stay together and are shuffled inside a shard.

    Args:
        index: rows as `library.sources.list_source` returns them.
        destination: URI of the dataset; with splits each is a dataset below it.
        layout: shard size, seed and splits.

    Returns:
        One task per shard, in order of name. A split without pictures has none.

    Raises:
        UsageError: `layout` has fractions, but the source has its own splits.
    """
    splits = _split_of_each(index, layout)
    target = layout.shard_bytes or shard_bytes_for(int(_compute.sum(index["size"]).as_py() or 0))
    order = _order(index, layout.seed)
    tasks: list[ShardTask] = []
    for split in dict.fromkeys(sorted(set(splits), key=_split_rank)):
        rows = order[splits[order] == split]
        sizes = index["size"].to_numpy()[rows].astype(np.int64)
        ends = np.cumsum(sizes)
        shard = (ends - sizes) // target
        dataset = storage.join(destination, split) if split else destination
        for number, part in enumerate(np.split(rows, np.flatnonzero(np.diff(shard)) + 1)):
            tasks.append(_task(index, part, dataset, shard_name(number), layout.seed))
    return tasks


def shard_bytes_for(total_bytes: int) -> int:
    """Returns the default shard size in bytes: 128 MiB, less for a small source so that several workers have work."""
    return int(min(DEFAULT_SHARD_BYTES, max(MIN_SHARD_BYTES, total_bytes // MIN_SHARDS)))


def hash64(*parts: object) -> int:
    """Returns a 64-bit hash of `parts`, the same in every process."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _order(index: pa.Table, seed: int) -> NDArray[np.int64]:
    keys = np.array([hash64(seed, key) for key in index["key"].to_pylist()], np.uint64)
    blocks = keys.copy()
    for row, block in enumerate(index["block"].to_pylist()):
        if block is not None:
            blocks[row] = hash64(seed, index["uri"][row].as_py(), block)
    return np.lexsort((keys, blocks))


def _task(index: pa.Table, rows: NDArray[np.int64], dataset: str, stem: str, seed: int) -> ShardTask:
    keys = index["key"].take(pa.array(rows)).to_pylist()
    shuffled = rows[np.argsort(np.array([hash64(seed, key) for key in keys], np.uint64), kind="stable")]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, index.schema) as stream:
        stream.write_table(index.take(pa.array(shuffled)).combine_chunks())
    data = sink.getvalue().to_pybytes()
    return ShardTask(dataset, stem, hashlib.sha256(data).hexdigest(), len(rows), index=data)


def _split_of_each(index: pa.Table, layout: Layout) -> NDArray[np.str_]:
    own = np.array([split or "" for split in index["split"].to_pylist()], dtype=np.str_)
    if not layout.fractions:
        return own
    if any(own):
        names = ", ".join(sorted({name for name in own.tolist() if name}))
        raise UsageError(f"the source has its own splits ({names}); join them with --split none before splitting anew")
    result = np.empty(index.num_rows, dtype=f"<U{max(map(len, layout.fractions))}")
    names, edges = list(layout.fractions), np.cumsum(list(layout.fractions.values()))
    hashes = np.array([hash64("split", key) for key in index["key"].to_pylist()], np.uint64)
    labels = np.array([label or "" for label in index["label"].to_pylist()])
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(hashes[rows], kind="stable")]
        # The middle of each rank: the only picture of a class goes to the largest split, not always to the first.
        quantiles = (np.arange(len(rows)) + 0.5) / len(rows)
        result[rows] = np.array(names)[np.minimum(np.searchsorted(edges, quantiles), len(names) - 1)]
    return result


def _split_rank(name: str) -> tuple[int, str]:
    known = ("", "train", "val", "test")
    return (known.index(name) if name in known else len(known), name)
