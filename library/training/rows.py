"""Which pictures of a dataset are learned from, and their labels; what is in them is read later."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library import storage
from library.errors import StriateError, UsageError
from library.manifest import Manifest, load_manifest
from library.randomness import seed_of
from library.shards import ShardReader

#: A store answers each request after some 50 ms, and a shard takes several.
_SHARDS_AT_ONCE = 16


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset's shards, in their order there.

    Attributes:
        dataset: URI.
        shards: names.
        shard: number of each row's shard.
        row: number of each row in its shard.
        labels: class ids.
        keys: of the pictures.
        classes: class names by id.
        picture_bytes: what a stored picture takes, on average.
    """

    dataset: str
    shards: tuple[str, ...]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    labels: NDArray[np.int64]
    keys: NDArray[Any]
    classes: tuple[str, ...]
    picture_bytes: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Rows:
        """Only these (a mask, or positions)."""
        arrays = {name: getattr(self, name)[rows] for name in ("shard", "row", "labels", "keys")}
        return dataclasses.replace(self, **arrays)

    @property
    def class_counts(self) -> dict[str, int]:
        """Pictures by class, in the order of the ids."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}


def read_rows(dataset: str, classes: Sequence[str] | None = None) -> Rows:
    """Read the keys and labels of a dataset; no pictures.

    Args:
        dataset: URI.
        classes: take only these, with ids in this order; None takes all, sorted by name.

    Raises:
        UsageError: where pictures have no label, or a class is not there.
    """
    manifest = load_manifest(dataset)
    known = _classes(dataset, manifest, classes)
    ids = {name: number for number, name in enumerate(known)}
    shard: list[NDArray[Any]] = []
    row: list[NDArray[Any]] = []
    labels: list[int] = []
    keys: list[str] = []
    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        readers = [ShardReader(storage.join(dataset, entry.name)) for entry in manifest.shards]
        tables = list(pool.map(lambda reader: reader.columns(["key", "label"]), readers))
    for number, table in enumerate(tables):
        found = [ids.get(name, -1) for name in table["label"].to_pylist()]
        chosen = [position for position, label in enumerate(found) if label >= 0]
        names = table["key"].to_pylist()
        shard.append(np.full(len(chosen), number, np.int32))
        row.append(np.asarray(chosen, np.int32))
        labels += [found[position] for position in chosen]
        keys += [names[position] for position in chosen]
    return Rows(
        dataset,
        tuple(entry.name for entry in manifest.shards),
        np.concatenate(shard) if shard else np.zeros(0, np.int32),
        np.concatenate(row) if row else np.zeros(0, np.int32),
        np.asarray(labels, np.int64),
        np.asarray(keys, object),
        tuple(known),
        sum(entry.bytes for entry in manifest.shards) / max(manifest.rows, 1),
    )


def _classes(dataset: str, manifest: Manifest, wanted: Sequence[str] | None) -> list[str]:
    there = manifest.tally.classes
    unlabelled = manifest.rows - sum(there.values())
    if wanted is None and unlabelled:
        raise UsageError(
            f"{unlabelled:,} of {manifest.rows:,} pictures of {dataset} have no label; name the classes to learn "
            "(data.classes), or ingest with --label-column"
        )
    missing = [name for name in wanted or () if name not in there]
    if missing:
        raise UsageError(
            f"{dataset} has no pictures of: {', '.join(missing)}; it has {', '.join(there) or 'no classes'}"
        )
    found = list(wanted) if wanted is not None else sorted(there)
    if len(found) < 2:
        raise UsageError(f"{dataset} has {len(found)} class(es); a classifier needs two or more")
    return found


def held_out(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Cut rows into those to learn from and those to validate with.

    Args:
        rows: all.
        fraction: of each class that is held out, at least one picture.
        seed: of the choice; it hangs on the keys alone, not on their order.

    Raises:
        UsageError: where a class has fewer than two pictures.
    """
    hashes = np.asarray([seed_of("held out", seed, key) >> 65 for key in rows.keys], np.int64)
    out = np.zeros(len(rows), bool)
    for number, name in enumerate(rows.classes):
        mine = np.flatnonzero(rows.labels == number)
        if len(mine) < 2:
            raise UsageError(f"class '{name}' has {len(mine)} picture(s); val_fraction needs two or more of each")
        count = min(len(mine) - 1, max(1, round(fraction * len(mine))))
        out[mine[np.argsort(hashes[mine], kind="stable")[:count]]] = True
    return rows.take(~out), rows.take(out)


def check_same_classes(train: Rows, val: Manifest, val_uri: str) -> None:
    """Refuse what would make every number meaningless.

    Raises:
        UsageError: when there is nothing to validate with, or train and val do not hold the same classes.
    """
    if not val.rows:
        raise UsageError(f"{val_uri} holds no pictures, so there is nothing to validate with")
    there, wanted = set(val.tally.classes), set(train.classes)
    problems = [
        f"{uri} has no pictures of: {', '.join(sorted(names))}"
        for uri, names in ((val_uri, wanted - there), (train.dataset, there - wanted))
        if names
    ]
    if problems:
        hint = "name the classes to learn with data.classes, or ingest both from one source with --split"
        raise UsageError(f"train and val hold different classes; {'; '.join(problems)}; {hint}")


def check_columns(rows: Rows, names: Sequence[str]) -> None:
    """Refuse what would fail at the first picture.

    Args:
        rows: of a dataset.
        names: of the columns that its pictures' steps ask for.

    Raises:
        UsageError: names what is not there.
    """
    if not names:
        return
    there = ShardReader(storage.join(rows.dataset, rows.shards[0])).schema().names
    missing = [name for name in names if name not in there]
    if missing:
        raise UsageError(
            f"input.steps ask for the column {', '.join(missing)}, which {rows.dataset} lacks; it has "
            f"{', '.join(there)}"
        )


def vanished(dataset: str, names: Sequence[str], rejected: Counter[str]) -> StriateError:
    """Nothing is left of these classes: it could not be learned, or not be measured."""
    return StriateError(
        f"{dataset}: no picture can be used of: {', '.join(names)}; rejected in all: {rejected_text(rejected)}. "
        "Leave them out with data.classes, or mend the pictures"
    )


def read_pictures(
    rows: Rows, shard: int, wanted: NDArray[np.int32], columns: Sequence[str] = ()
) -> list[Mapping[str, Any]]:
    """Stored bytes of rows of one shard, as mappings with `bytes` and `columns`.

    Args:
        rows: whose dataset it is.
        shard: number of the shard.
        wanted: row numbers in it, ascending.
        columns: others that are needed.
    """
    found: list[Mapping[str, Any]] = []
    if not len(wanted):
        return found
    first = int(wanted[0])
    uri = storage.join(rows.dataset, rows.shards[shard])
    for table in ShardReader(uri, max_rows=int(wanted[-1]) - first + 1, first_row=first):
        here = wanted[(wanted >= first) & (wanted < first + table.num_rows)] - first
        if len(here):
            taken = table.take(here)
            data = taken["image"].combine_chunks().field("bytes").to_pylist()
            others = {name: taken[name].to_pylist() for name in ("key", "label", *columns)}
            for position, item in enumerate(data):
                found.append({"bytes": item, **{name: values[position] for name, values in others.items()}})
        first += table.num_rows
    return found


def rejected_text(rejected: Counter[str]) -> str:
    """`truncated 2, damaged 1`."""
    return ", ".join(f"{reason} {count:,}" for reason, count in rejected.most_common())
