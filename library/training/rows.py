"""The rows of a dataset that a training uses; their pictures, keys and labels are read later."""

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
from library.training.label_sets import LabelSets, check_column, count_names

#: An object store answers a request in some 50 ms, and a shard takes several requests.
_PARALLEL_SHARDS = 16


@dataclass(frozen=True)
class Rows:
    """A selection of a dataset's rows, in stored order.

    It is sent to every worker and every decoder, so it holds at most one bit for each picture: no keys and no labels.
    A hundred million pictures in 60,000 shards take 13 MB.

    Attributes:
        dataset: URI.
        shards: shard names.
        sizes: rows of each shard, selected or not.
        classes: class names by id; where a picture has several labels, the sets of them (`LabelSets.texts`).
        class_counts: selected pictures of each of `classes`, in the order of the ids.
        picture_bytes: mean size of a stored picture, in bytes.
        used: one bit for every row of all shards (`numpy.packbits`), set for selected rows; None selects all rows.
        label_sets: where a picture has several labels; None where it has one.
    """

    dataset: str
    shards: tuple[str, ...]
    sizes: NDArray[np.int64]
    classes: tuple[str, ...]
    class_counts: dict[str, int]
    picture_bytes: float = 0.0
    used: NDArray[np.uint8] | None = None
    label_sets: LabelSets | None = None

    def __len__(self) -> int:
        return sum(self.class_counts.values())

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """The number of selected rows of each shard."""
        if self.used is None:
            return self.sizes
        return np.asarray([len(self.positions(shard)) for shard in range(len(self.shards))], np.int64)

    @cached_property
    def class_ids(self) -> dict[str, int]:
        """Class ids by name."""
        return {name: number for number, name in enumerate(self.classes)}

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the model's outputs."""
        return self.classes if self.label_sets is None else self.label_sets.names

    @property
    def name_counts(self) -> dict[str, int]:
        """Selected pictures of each name."""
        return self.class_counts if self.label_sets is None else self.label_sets.name_counts(self.class_counts.values())

    @property
    def label_column(self) -> str:
        """The column that holds the labels."""
        return "label" if self.label_sets is None else self.label_sets.column

    def labels_of(self, table: pa.Table) -> list[str | None]:
        """The labels of a table's rows, as `classes` names them."""
        values = table[self.label_column].to_pylist()
        sets = self.label_sets
        return values if sets is None else [None if value is None else sets.text(value) for value in values]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def positions(self, shard: int) -> NDArray[np.int64]:
        """The selected row numbers of a shard, ascending."""
        first, last = int(self._starts[shard]), int(self._starts[shard + 1])
        if self.used is None:
            return np.arange(last - first)
        bits = np.unpackbits(self.used[first // 8 : -(-last // 8)])
        return np.flatnonzero(bits[first % 8 : first % 8 + last - first])

    def only(self, used: NDArray[np.bool_], class_counts: Sequence[int]) -> Rows:
        """A smaller selection.

        Args:
            used: for every row of all shards, whether it is selected.
            class_counts: selected rows of each class.
        """
        counts = dict(zip(self.classes, class_counts, strict=True))
        return dataclasses.replace(self, used=np.packbits(used), class_counts=counts)


def read_rows(dataset: str, classes: Sequence[str] | None = None) -> Rows:
    """Selects a dataset's rows. Reads labels only where classes are chosen, and never reads pictures.

    Args:
        dataset: URI.
        classes: classes to select, with ids in this order; None selects all, sorted by name.

    Raises:
        UsageError: when pictures have no label, a class is missing, or there are fewer than two classes.
    """
    manifest = load_manifest(dataset)
    names = _class_names(dataset, manifest, classes)
    rows = Rows(
        dataset,
        tuple(entry.name for entry in manifest.shards),
        np.asarray([entry.rows for entry in manifest.shards], np.int64),
        tuple(names),
        {name: manifest.tally.classes[name] for name in names},
        sum(entry.bytes for entry in manifest.shards) / max(manifest.rows, 1),
    )
    if len(rows) == manifest.rows:
        return rows
    labels = np.concatenate([*_map_shards(rows, ["label"], lambda table: _label_ids(rows, table))])
    return rows.only(labels >= 0, [rows.class_counts[name] for name in names])


def read_labelled_rows(
    train: str, val: str | None, column: str, classes: Sequence[str] | None = None
) -> tuple[Rows, Rows | None]:
    """Selects all rows of datasets whose pictures have several labels; reads the labels, and never pictures.

    Args:
        train: URI of the training set.
        val: URI of the validation set, or None.
        column: the column with a list of names for each picture.
        classes: the classes to learn, with ids in this order; None for all names of the training set, sorted.

    Raises:
        UsageError: the column does not hold lists of names, a picture has none, or a class has no picture.
    """
    both = [_unlabelled_rows(uri, column) for uri in (train, val) if uri is not None]
    lists = [list(_label_lists(rows, column)) for rows in both]
    counts = [count_names(rows.dataset, column, values) for rows, values in zip(both, lists, strict=True)]
    names = tuple(sorted(counts[0]) if classes is None else classes)
    if len(names) < 2:
        raise UsageError(f"{train} has {len(names)} class(es) in '{column}'; a classifier needs two or more")
    for rows, count in zip(both, counts, strict=True):
        missing = [name for name in names if rows.dataset == both[0].dataset and not count[name]]
        if missing:
            raise UsageError(f"{rows.dataset} has no pictures of: {', '.join(missing)}; it has {', '.join(count)}")
        unknown = sorted(set(count) - set(names)) if classes is None else []
        if unknown:
            raise UsageError(
                f"{rows.dataset} has classes that {train} lacks: {', '.join(unknown)}; choose the classes with "
                "data.classes"
            )
    known = LabelSets(column, names)
    texts = [Counter(known.text(labels or ()) for labels in values) for values in lists]
    sets = dataclasses.replace(known, texts=tuple(sorted(set().union(*texts))))
    found = [
        dataclasses.replace(
            rows, classes=sets.texts, class_counts={text: count[text] for text in sets.texts}, label_sets=sets
        )
        for rows, count in zip(both, texts, strict=True)
    ]
    return found[0], found[1] if len(found) > 1 else None


def _unlabelled_rows(dataset: str, column: str) -> Rows:
    manifest = load_manifest(dataset)
    if not manifest.rows:
        raise UsageError(f"{dataset} has no pictures")
    check_column(dataset, ShardReader(storage.join(dataset, manifest.shards[0].name)).schema(), column)
    return Rows(
        dataset,
        tuple(entry.name for entry in manifest.shards),
        np.asarray([entry.rows for entry in manifest.shards], np.int64),
        (),
        {},
        sum(entry.bytes for entry in manifest.shards) / manifest.rows,
    )


def _label_lists(rows: Rows, column: str) -> Iterator[Sequence[Any] | None]:
    for name in rows.shards:
        yield from ShardReader(storage.join(rows.dataset, name)).columns([column])[column].to_pylist()


def _label_ids(rows: Rows, table: pa.Table) -> NDArray[np.int32]:
    """The class id of each row; -1 for a class that is not selected."""
    return np.asarray(
        [-1 if name is None else rows.class_ids.get(name, -1) for name in rows.labels_of(table)], np.int32
    )


def _map_shards(rows: Rows, columns: Sequence[str], work: Callable[[pa.Table], NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Yields the result of `work` on these columns of each shard, in order."""

    def read(name: str) -> NDArray[Any]:
        return work(ShardReader(storage.join(rows.dataset, name)).columns(columns))

    with ThreadPoolExecutor(_PARALLEL_SHARDS) as pool:
        yield from pool.map(read, rows.shards)


def _class_names(dataset: str, manifest: Manifest, chosen: Sequence[str] | None) -> list[str]:
    present = manifest.tally.classes
    unlabelled = manifest.rows - sum(present.values())
    if chosen is None and unlabelled:
        raise UsageError(
            f"{unlabelled:,} of {manifest.rows:,} pictures of {dataset} have no label; choose classes with "
            "data.classes, or ingest with --label-column"
        )
    missing = [name for name in chosen or () if name not in present]
    if missing:
        raise UsageError(
            f"{dataset} has no pictures of: {', '.join(missing)}; it has {', '.join(present) or 'no classes'}"
        )
    names = list(chosen) if chosen is not None else sorted(present)
    if len(names) < 2:
        raise UsageError(f"{dataset} has {len(names)} class(es); a classifier needs two or more")
    return names


def split_rows(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Splits rows into training and validation rows.

    Args:
        rows: all rows.
        fraction: fraction of each class to hold out for validation, at least one picture.
        seed: seed of the choice, which depends on the keys and not on their order.

    Raises:
        UsageError: when a class has fewer than two pictures.
    """
    if rows.label_sets is not None:
        return _split_labelled_rows(rows, fraction, seed)
    for name, count in rows.class_counts.items():
        if count < 2:
            raise UsageError(f"class '{name}' has {count} picture(s); val_fraction needs two or more of each")

    def read(table: pa.Table) -> NDArray[np.int64]:
        hashes = [seed_of("held out", seed, key) >> 65 for key in table["key"].to_pylist()]
        return np.stack([_label_ids(rows, table).astype(np.int64), np.asarray(hashes, np.int64)])

    labels, hashes = np.concatenate([*_map_shards(rows, ["key", "label"], read)], axis=1)
    is_val = np.zeros(len(labels), bool)
    val_counts: list[int] = []
    for class_id, total in enumerate(rows.class_counts.values()):
        of_class = np.flatnonzero(labels == class_id)
        val_counts.append(min(total - 1, max(1, round(fraction * total))))
        is_val[of_class[np.argsort(hashes[of_class], kind="stable")[: val_counts[-1]]]] = True
    train_counts = [total - count for total, count in zip(rows.class_counts.values(), val_counts, strict=True)]
    return rows.only((labels >= 0) & ~is_val, train_counts), rows.only(is_val, val_counts)


def _split_labelled_rows(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Holds out a fraction of all pictures, by a hash of the key: a set of labels may be that of a single picture."""

    def read(table: pa.Table) -> NDArray[np.int64]:
        hashes = [seed_of("held out", seed, key) >> 65 for key in table["key"].to_pylist()]
        return np.stack([_label_ids(rows, table).astype(np.int64), np.asarray(hashes, np.int64)])

    labels, hashes = np.concatenate([*_map_shards(rows, ["key", rows.label_column], read)], axis=1)
    is_val = np.zeros(len(labels), bool)
    is_val[np.argsort(hashes, kind="stable")[: min(len(labels) - 1, max(1, round(fraction * len(labels))))]] = True
    parts = [
        rows.only(chosen, np.bincount(labels[chosen], minlength=len(rows.classes)).tolist())
        for chosen in (~is_val, is_val)
    ]
    missing = [name for name, count in parts[0].name_counts.items() if not count]
    if missing:
        raise UsageError(f"val_fraction leaves no training pictures of: {', '.join(missing)}; hold out fewer")
    return parts[0], parts[1]


def check_same_classes(train: Rows, val: Manifest, val_uri: str) -> None:
    """Checks that the validation set has pictures, and the same classes as the training set.

    Raises:
        UsageError: names the differences.
    """
    if not val.rows:
        raise UsageError(f"{val_uri} has no pictures to validate with")
    val_classes, train_classes = set(val.tally.classes), set(train.classes)
    problems = [
        f"{uri} has no pictures of: {', '.join(sorted(names))}"
        for uri, names in ((val_uri, train_classes - val_classes), (train.dataset, val_classes - train_classes))
        if names
    ]
    if problems:
        hint = "choose the classes with data.classes, or ingest both from one source with --split"
        raise UsageError(f"train and val have different classes: {'; '.join(problems)}; {hint}")


def check_columns(rows: Rows, names: Sequence[str]) -> None:
    """Checks that a dataset has the columns that steps need.

    Args:
        rows: the dataset's rows.
        names: names of the columns.

    Raises:
        UsageError: names the missing columns.
    """
    if not names:
        return
    present = ShardReader(storage.join(rows.dataset, rows.shards[0])).schema().names
    missing = [name for name in names if name not in present]
    if missing:
        raise UsageError(
            f"input.steps need the column {', '.join(missing)}, which {rows.dataset} lacks; it has {', '.join(present)}"
        )


def missing_classes_error(dataset: str, names: Sequence[str], rejected: Counter[str]) -> StriateError:
    """Returns the error for classes without a single usable picture."""
    return StriateError(
        f"{dataset}: no picture can be used of: {', '.join(names)}; rejected in all: {rejected_text(rejected)}. "
        "Repair the pictures, or leave these classes out with data.classes."
    )


#: Shard number, and a range of that shard's selected rows: first position and one past the last.
Part = tuple[int, int, int]


def read_part(rows: Rows, part: Part, columns: Sequence[str] = ()) -> pa.Table:
    """Reads rows of one shard as stored: the columns `bytes`, `key`, `label` and `columns`.

    Args:
        rows: the dataset's rows.
        part: the rows to read, at least one.
        columns: more columns to read.
    """
    shard, low, high = part
    positions = rows.positions(shard)[low:high]
    first = int(positions[0])
    tables: list[pa.Table] = []
    reader = ShardReader(
        storage.join(rows.dataset, rows.shards[shard]), max_rows=int(positions[-1]) - first + 1, first_row=first
    )
    for table in reader:
        selected = positions[(positions >= first) & (positions < first + table.num_rows)] - first
        chosen = table if len(selected) == table.num_rows else table.take(pa.array(selected))
        data = chosen["image"].combine_chunks().field("bytes").cast(pa.large_binary())
        others = {name: chosen[name] for name in ("key", *columns)}
        others["label"] = chosen["label"] if rows.label_sets is None else pa.array(rows.labels_of(chosen), pa.string())
        tables.append(pa.table({"bytes": data, **others}))
        first += table.num_rows
    return pa.concat_tables(tables)


def read_pictures(rows: Rows, part: Part, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Reads the same rows as a list of mappings; the part may extend beyond the end of its shard."""
    shard, low, high = part
    high = min(high, int(rows.counts[shard]))
    return read_part(rows, (shard, low, high), columns).to_pylist() if low < high else []


def rejected_text(rejected: Counter[str]) -> str:
    """Counts by reason as text, e.g. `truncated 2, damaged 1`."""
    return ", ".join(f"{reason} {count:,}" for reason, count in rejected.most_common())
