"""Which rows of a dataset's shards are learned from. What is in them, keys and labels too, is read later."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library import storage
from library.dataset.manifest import Manifest, load_manifest
from library.dataset.shards import ShardReader
from library.errors import StriateError, UsageError
from library.randomness import seed_of

#: A store answers each request after some 50 ms, and a shard takes several.
_SHARDS_AT_ONCE = 16


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset's shards, in their order there.

    It goes to every worker and every decoder, so it holds a bit a picture at most: no keys and no labels. A hundred
    million pictures in 60,000 shards take 13 MB.

    Attributes:
        dataset: URI.
        shards: names.
        sizes: rows of each shard.
        classes: class names by id.
        class_counts: pictures by class, in the order of the ids.
        picture_bytes: what a stored picture takes, on average.
        used: a bit for every row of all shards (`numpy.packbits`), whether it is one of these; None where all are.
    """

    dataset: str
    shards: tuple[str, ...]
    sizes: NDArray[np.int64]
    classes: tuple[str, ...]
    class_counts: dict[str, int]
    picture_bytes: float = 0.0
    used: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return sum(self.class_counts.values())

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many rows of each shard are used."""
        if self.used is None:
            return self.sizes
        return np.asarray([len(self.positions(shard)) for shard in range(len(self.shards))], np.int64)

    @cached_property
    def class_ids(self) -> dict[str, int]:
        """Class ids by name."""
        return {name: number for number, name in enumerate(self.classes)}

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def positions(self, shard: int) -> NDArray[np.int64]:
        """Row numbers in a shard that are used, ascending."""
        first, last = int(self._starts[shard]), int(self._starts[shard + 1])
        if self.used is None:
            return np.arange(last - first)
        bits = np.unpackbits(self.used[first // 8 : -(-last // 8)])
        return np.flatnonzero(bits[first % 8 : first % 8 + last - first])

    def only(self, used: NDArray[np.bool_], class_counts: Sequence[int]) -> Rows:
        """Some of them.

        Args:
            used: for every row of all shards, whether it is kept.
            class_counts: how many of each class are.
        """
        counts = dict(zip(self.classes, class_counts, strict=True))
        return dataclasses.replace(self, used=np.packbits(used), class_counts=counts)


def read_rows(dataset: str, classes: Sequence[str] | None = None) -> Rows:
    """Which rows are learned from. Labels are read only where classes are chosen, pictures never.

    Args:
        dataset: URI.
        classes: take only these, with ids in this order; None takes all, sorted by name.

    Raises:
        UsageError: where pictures have no label, or a class is not there.
    """
    manifest = load_manifest(dataset)
    known = _classes(dataset, manifest, classes)
    rows = Rows(
        dataset,
        tuple(entry.name for entry in manifest.shards),
        np.asarray([entry.rows for entry in manifest.shards], np.int64),
        tuple(known),
        {name: manifest.tally.classes[name] for name in known},
        sum(entry.bytes for entry in manifest.shards) / max(manifest.rows, 1),
    )
    if len(rows) == manifest.rows:
        return rows
    labels = np.concatenate([*_each_shard(rows, ["label"], lambda table: _label_ids(rows, table))])
    return rows.only(labels >= 0, [rows.class_counts[name] for name in known])


def _label_ids(rows: Rows, table: pa.Table) -> NDArray[np.int32]:
    """Of each row the class id; -1 for a class that is not learned."""
    return np.asarray([rows.class_ids.get(name, -1) for name in table["label"].to_pylist()], np.int32)


def _each_shard(rows: Rows, columns: Sequence[str], work: Callable[[pa.Table], NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """What `work` makes of these columns of each shard, in order."""

    def read(name: str) -> NDArray[Any]:
        return work(ShardReader(storage.join(rows.dataset, name)).columns(columns))

    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        yield from pool.map(read, rows.shards)


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
        seed: of the choice, which depends on the keys alone and not on their order.

    Raises:
        UsageError: where a class has fewer than two pictures.
    """
    for name, count in rows.class_counts.items():
        if count < 2:
            raise UsageError(f"class '{name}' has {count} picture(s); val_fraction needs two or more of each")

    def read(table: pa.Table) -> NDArray[np.int64]:
        hashes = [seed_of("held out", seed, key) >> 65 for key in table["key"].to_pylist()]
        return np.stack([_label_ids(rows, table).astype(np.int64), np.asarray(hashes, np.int64)])

    labels, hashes = np.concatenate([*_each_shard(rows, ["key", "label"], read)], axis=1)
    out = np.zeros(len(labels), bool)
    counts: list[int] = []
    for number, have in enumerate(rows.class_counts.values()):
        mine = np.flatnonzero(labels == number)
        counts.append(min(have - 1, max(1, round(fraction * have))))
        out[mine[np.argsort(hashes[mine], kind="stable")[: counts[-1]]]] = True
    left = [have - count for have, count in zip(rows.class_counts.values(), counts, strict=True)]
    return rows.only((labels >= 0) & ~out, left), rows.only(out, counts)


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


#: Shard number, and first and last-but-one position among the rows of that shard that are used.
Part = tuple[int, int, int]


def read_part(rows: Rows, part: Part, columns: Sequence[str] = ()) -> pa.Table:
    """Rows of one shard as stored: `bytes`, `key`, `label` and `columns`.

    Args:
        rows: whose dataset it is.
        part: which of them, at least one.
        columns: others that are needed.
    """
    shard, low, high = part
    wanted = rows.positions(shard)[low:high]
    first = int(wanted[0])
    tables: list[pa.Table] = []
    reader = ShardReader(
        storage.join(rows.dataset, rows.shards[shard]), max_rows=int(wanted[-1]) - first + 1, first_row=first
    )
    for table in reader:
        here = wanted[(wanted >= first) & (wanted < first + table.num_rows)] - first
        taken = table if len(here) == table.num_rows else table.take(pa.array(here))
        data = taken["image"].combine_chunks().field("bytes").cast(pa.large_binary())
        others = {name: taken[name] for name in ("key", "label", *columns)}
        tables.append(pa.table({"bytes": data, **others}))
        first += table.num_rows
    return pa.concat_tables(tables)


def read_pictures(rows: Rows, part: Part, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The same as mappings; a part may go beyond the end of its shard."""
    shard, low, high = part
    high = min(high, int(rows.counts[shard]))
    return read_part(rows, (shard, low, high), columns).to_pylist() if low < high else []


def rejected_text(rejected: Counter[str]) -> str:
    """`truncated 2, damaged 1`."""
    return ", ".join(f"{reason} {count:,}" for reason, count in rejected.most_common())
