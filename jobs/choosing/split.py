"""Divides a dataset into splits or folds whose groups do not straddle: `striate split`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.connection.session import connect
from jobs.choosing.measure import ensure_measures
from jobs.choosing.selection import Target, select_datasets
from library import storage
from library.choosing.duplicates.fingerprints import MOST_BITS, Rule
from library.choosing.measures.side_table import read_measures
from library.choosing.splits.assignment import ASSIGNMENT_SCHEMA, LEFT_OUT, assign_groups
from library.choosing.splits.grouping import Groups, group_pictures, name_groups, straddling
from library.dataset.destination import check_apart, check_claim, remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import Job, Manifest, datasets_inside, find_manifest, load_manifest, splits_below
from library.dataset.planning import parse_fractions
from library.dataset.shards import read_columns, write_table
from library.errors import StriateError, UsageError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: The table of all pictures with their groups and splits, below the destination.
ASSIGNMENT = "_assignment.parquet"
#: Why a new picture is in no split: it joins pictures that are in several splits already.
JOINS_SPLITS = "joins_splits"

_MOST_FOLDS = 100
#: A split's share of the pictures may differ this much from its fraction without a word.
_NOTED = 0.01
_NO_REASON = pa.scalar(None, pa.string())


@dataclass(frozen=True)
class SplitPlan:
    """What `striate split` does; from `plan_split`.

    Attributes:
        source: URI of the dataset.
        destination: URI of the folder of the splits.
        manifest: of the source.
        job: what the manifest of each split records.
        fractions: fraction of each split or fold by its name.
        folds: number of folds; None for splits.
        rule: when two pictures are duplicates.
        column: pictures with equal values of this column stay together; None for none.
        seed: of the assignment.
        stratify: divide every class by the fractions.
        earlier: folders whose assignments are kept; the first counts where both have a picture.
        overwrite: replace what is at the destination.
    """

    source: str
    destination: str
    manifest: Manifest
    job: Job
    fractions: Mapping[str, float]
    folds: int | None
    rule: Rule
    column: str | None
    seed: int
    stratify: bool
    earlier: Sequence[str]
    overwrite: bool

    @property
    def datasets(self) -> dict[str, frozenset[str]]:
        """The splits or folds whose pictures each dataset gets, by its path below the destination."""
        if self.folds is None:
            return {name: frozenset([name]) for name in self.fractions}
        every = frozenset(self.fractions)
        return {
            path: names
            for fold in self.fractions
            for path, names in ((f"{fold}/train", every - {fold}), (f"{fold}/val", frozenset([fold])))
        }


@dataclass(frozen=True)
class Assignment:
    """Where each picture goes.

    Attributes:
        table: columns of `ASSIGNMENT_SCHEMA`, in the order of the dataset.
        labels: of the pictures.
        largest_group: pictures of the largest group.
    """

    table: pa.Table
    labels: pa.ChunkedArray[Any]
    largest_group: int

    def missed(self, fractions: Mapping[str, float]) -> list[str]:
        """Returns a sentence for each split whose share of the pictures is more than a point from its fraction.

        Whole groups and small classes cannot be divided as finely as a fraction asks.
        """
        splits = [split for split in self.table["split"].to_pylist() if split is not None]
        total = sum(fractions.values())
        lines: list[str] = []
        for name, fraction in fractions.items():
            share, wanted = splits.count(name) / max(1, len(splits)), fraction / total
            if abs(share - wanted) > _NOTED:
                lines.append(f"{name} has {share:.1%} of the pictures instead of {wanted:.1%}")
        return lines

    def described(self) -> dict[str, Any]:
        """Returns the counts of pictures, groups and classes."""
        splits = self.table["split"].to_pylist()
        pairs = Counter(zip(splits, self.labels.to_pylist(), strict=True))
        classes = sorted({label for _, label in pairs if label is not None})
        return {
            "pictures": self.table.num_rows,
            "groups": len(_compute.unique(self.table["group"])),
            "largest_group": self.largest_group,
            "left_out": splits.count(None),
            "splits": {
                name: {
                    "pictures": splits.count(name),
                    "classes": {label: pairs[name, label] for label in classes},
                }
                for name in dict.fromkeys(split for split in sorted(splits, key=str) if split is not None)
            },
        }


def plan_split(
    source: str,
    destination: str,
    *,
    split: str | None = None,
    folds: int | None = None,
    near: int | None = 4,
    flips: bool = False,
    group_by: str | None = None,
    seed: int = 0,
    stratify: bool = True,
    like: str | None = None,
    overwrite: bool = False,
) -> SplitPlan:
    """Checks everything that can be checked before pictures are measured; writes nothing.

    Args:
        source: URI of a dataset.
        destination: URI of a folder; each split is a dataset below it.
        split: fractions as for `striate ingest`, e.g. `train=0.8,test=0.2`.
        folds: number of folds instead; each becomes `fold-N/train` and `fold-N/val`.
        near: the most bits in which near duplicates differ; None for exact duplicates only.
        flips: whether mirrored pictures are duplicates too.
        group_by: column whose equal values stay together.
        seed: of the assignment.
        stratify: divide every class by the fractions; else a group's own hash decides alone.
        like: URI of a folder with an earlier split, whose pictures stay where they are.
        overwrite: replace what is at the destination, and forget its assignment.

    Raises:
        UsageError: when the request is not valid.
    """
    source, destination = storage.normalize(source), storage.normalize(destination)
    like = None if like is None else storage.normalize(like)
    if (split is None) == (folds is None):
        raise UsageError("say how to divide: either --split train=0.8,val=0.1,test=0.1 or --folds 5")
    if folds is not None and not 2 <= folds <= _MOST_FOLDS:
        raise UsageError(f"--folds {folds}: must be 2 to {_MOST_FOLDS}")
    if near is not None and not 0 <= near <= MOST_BITS:
        raise UsageError(f"--near {near}: must be 0 to {MOST_BITS} bits")
    if near is None and flips:
        raise UsageError("--flips compares mirrored pictures by --near; leave out --no-near or --flips")
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be at least 0")
    fractions = (
        {f"fold-{number}": 1 / folds for number in range(1, folds + 1)}
        if folds is not None
        else parse_fractions(split or "")
    )
    check_apart(source, destination)
    manifest = load_manifest(source)
    if not manifest.rows:
        raise UsageError(f"{source} has no pictures")
    if group_by is not None:
        _check_column(source, manifest, group_by)
    earlier = _earlier_folders(destination, like, overwrite=overwrite)
    job = Job(
        kind="split",
        source=source,
        source_digest=manifest.digest,
        options={
            "split": split,
            "folds": folds,
            "near": near,
            "flips": flips,
            "group_by": group_by,
            "seed": seed,
            "stratify": stratify,
            "like": like,
        },
    )
    plan = SplitPlan(
        source,
        destination,
        manifest,
        job,
        fractions,
        folds,
        Rule(near, flips),
        group_by,
        seed,
        stratify,
        earlier,
        overwrite,
    )
    _check_destination(plan)
    return plan


def _check_column(source: str, manifest: Manifest, column: str) -> None:
    schema = read_columns(source, [column], [manifest.shards[0].name]).schema
    type_ = schema.field(column).type
    if pa.types.is_nested(type_) or pa.types.is_floating(type_):
        raise UsageError(f"--group-by {column}: its values are {type_}; name a column of texts or whole numbers")


def _earlier_folders(destination: str, like: str | None, *, overwrite: bool) -> list[str]:
    own = [] if overwrite or not storage.exists(storage.join(destination, ASSIGNMENT)) else [destination]
    if like is not None and not storage.exists(storage.join(like, ASSIGNMENT)) and not splits_below(like):
        raise UsageError(f"--like {like}: it has no splits; name a folder that `striate split` wrote")
    return own + ([like] if like is not None else [])


def _check_destination(plan: SplitPlan) -> None:
    if find_manifest(plan.destination) is not None:
        raise UsageError(f"{plan.destination} is a dataset itself and cannot hold splits; choose another folder")
    others = sorted(set(datasets_inside(plan.destination)) - set(plan.datasets))
    if others:
        raise UsageError(
            f"{plan.destination} has other splits: {', '.join(others)}; remove them, or choose another folder"
        )
    for path in plan.datasets:
        check_claim(storage.join(plan.destination, path), plan.job, overwrite=plan.overwrite)


def assign_pictures(plan: SplitPlan, measures: pa.Table) -> Assignment:
    """Assigns every picture to a split or fold.

    Args:
        plan: from `plan_split`.
        measures: `key` and the columns of the rule, in the order of the dataset.

    Raises:
        UsageError: a split would be empty, or the earlier assignment has other groups.
    """
    names = ["key", "label", *([] if plan.column in (None, "key", "label") else [plan.column])]
    table = read_columns(plan.source, names, [shard.name for shard in plan.manifest.shards])
    for name in plan.rule.columns:
        # A column of the dataset may have the name of a measure.
        table = table.append_column(name, measures[name]) if name != plan.column else table
    keys, labels = table["key"].to_pylist(), table["label"].to_pylist()
    values = None if plan.column is None else table[plan.column].to_pylist()
    groups = name_groups(group_pictures(table, plan.rule, plan.column), keys, plan.column or "", values)
    earlier = _earlier_splits(plan, table["key"], groups)
    splits = assign_groups(groups, labels, plan.fractions, seed=plan.seed, stratify=plan.stratify, earlier=earlier)
    of_pictures = splits[groups.of_pictures]
    index = [*plan.fractions, None]
    chosen = [index[number] for number in of_pictures.tolist()]
    if earlier is not None:
        # A picture that was assigned stays even where its group is left out.
        chosen = [now if before is None else before for now, before in zip(chosen, earlier, strict=True)]
        _check_groups(plan, table, earlier, np.flatnonzero(of_pictures == LEFT_OUT))
    empty = sorted(set(plan.fractions) - set(chosen))
    if empty:
        raise UsageError(
            f"'{empty[0]}' would have no pictures: the {len(keys):,} pictures of {plan.source} are "
            f"{len(groups.names):,} groups; use fewer or larger splits, or a smaller --near"
        )
    columns = {"key": table["key"], "group": [groups.names[number] for number in groups.of_pictures.tolist()]}
    assigned = pa.table({**columns, "split": pa.array(chosen, pa.string())}, ASSIGNMENT_SCHEMA)
    return Assignment(assigned, cast(Any, table["label"]), int(np.bincount(groups.of_pictures).max()))


def _earlier_splits(plan: SplitPlan, keys: pa.ChunkedArray[Any], groups: Groups) -> list[str | None] | None:
    """Returns the split of each picture in the earlier assignments; None where there are none.

    A group of new pictures only, whose name is that of a group of pictures that the dataset no longer has, goes where
    those were.
    """
    if not plan.earlier:
        return None
    splits, absent = pa.nulls(len(keys), pa.string()), dict[str, set[str]]()
    for folder in plan.earlier:
        known = read_assignment(folder)
        rows = _compute.index_in(keys.combine_chunks(), value_set=known["key"].combine_chunks())
        splits = _compute.coalesce(splits, known["split"].combine_chunks().take(rows))
        gone = _absent(known, keys)
        for group, split in zip(gone["group"].to_pylist(), gone["split"].to_pylist(), strict=True):
            if group is not None and split in plan.fractions:
                absent.setdefault(group, set()).add(split)
    earlier = splits.to_pylist()
    old = {number for number, split in zip(groups.of_pictures.tolist(), earlier, strict=True) if split is not None}
    named = [absent.get(name, set[str]()) for name in groups.names]
    followed = {number: min(its) for number, its in enumerate(named) if len(its) == 1 and number not in old}
    return [followed.get(number, now) for number, now in zip(groups.of_pictures.tolist(), earlier, strict=True)]


def _absent(known: pa.Table, keys: pa.ChunkedArray[Any]) -> pa.Table:
    """Returns the rows of an earlier assignment whose pictures are not among `keys`."""
    return known.filter(_compute.invert(_compute.is_in(known["key"], value_set=keys.combine_chunks())))


def stored_assignment(plan: SplitPlan, assignment: Assignment) -> pa.Table:
    """Returns the assignment as it is stored: after the pictures of the dataset those that it had in earlier runs.

    So a picture that is away for one run returns to its split.
    """
    if plan.destination not in plan.earlier:
        return assignment.table
    return pa.concat_tables([assignment.table, _absent(read_assignment(plan.destination), assignment.table["key"])])


def read_assignment(folder: str) -> pa.Table:
    """Returns the columns of `ASSIGNMENT_SCHEMA` of an earlier split: its table, or else the datasets below it.

    Raises:
        StriateError: the table is damaged or has other columns.
    """
    uri = storage.join(folder, ASSIGNMENT)
    if storage.exists(uri):
        data = pa.BufferReader(storage.read_bytes(uri))
        try:
            return pq.ParquetFile(data).read(ASSIGNMENT_SCHEMA.names, use_threads=False).cast(ASSIGNMENT_SCHEMA)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StriateError(
                f"{uri} is not a readable assignment: {error}; if you remove it, the datasets beside it say in which "
                "split each picture is"
            ) from error
    tables: list[pa.Table] = []
    for dataset in splits_below(folder):
        shards = [shard.name for shard in load_manifest(dataset).shards]
        if shards:
            keys = read_columns(dataset, ["key"], shards)
            split = pa.array([storage.name_of(dataset)] * keys.num_rows, pa.string())
            columns = {"key": keys["key"], "group": pa.nulls(keys.num_rows, pa.string()), "split": split}
            tables.append(pa.table(columns, ASSIGNMENT_SCHEMA))
    return pa.concat_tables(tables)


def _check_groups(plan: SplitPlan, table: pa.Table, earlier: Sequence[str | None], rows: NDArray[np.int64]) -> None:
    """Refuses an earlier assignment in which pictures of one group are in several splits.

    Args:
        plan: the plan.
        table: all pictures with what groups them.
        earlier: the earlier split of each.
        rows: those in groups that have earlier pictures in several splits, which new pictures may have joined.
    """
    old = [row for row in rows.tolist() if earlier[row] is not None]
    if not old:
        return
    numbers = group_pictures(table.take(pa.array(old)), plan.rule, plan.column)
    apart = straddling(numbers, [earlier[row] for row in old])
    if apart:
        first = next(iter(apart))
        members = [row for row, number in zip(old, numbers.tolist(), strict=True) if number == first]
        each = {earlier[row]: table["key"][row].as_py() for row in members}
        places = " and ".join(f"'{key}' in {split}" for split, key in each.items())
        raise UsageError(
            f"{len(apart):,} groups are in several splits of {plan.earlier[-1]} already: {places} belong together by "
            "--near and --group-by as given now. Divide anew: without --like, and with --overwrite for the same "
            "destination"
        )


def split_dataset(
    plan: SplitPlan, *, workers: str = "auto", address: str | None = None
) -> tuple[Assignment, dict[str, Manifest]]:
    """Carries out a plan: measures what is missing, assigns, and writes the datasets; called again, it resumes.

    Returns:
        The assignment, and the manifest of each dataset by URI.

    Raises:
        UsageError: as `assign_pictures`; when another command is writing there.
        StriateError: when a shard fails; finished shards are kept.
    """
    with hold(plan.destination, tidy=remove_uncommitted), connect(address):
        measures = ensure_measures(plan.source, plan.rule.columns, workers=workers, address=address)
        assignment = assign_pictures(plan, measures)
        # Before the pictures: what a killed command has assigned stays, whatever is added to the dataset meanwhile.
        write_table(storage.join(plan.destination, ASSIGNMENT), stored_assignment(plan, assignment))
        targets = [
            Target(storage.join(plan.destination, path), _decisions(assignment.table, names, path), plan.job)
            for path, names in plan.datasets.items()
        ]
        manifests = select_datasets(
            "split",
            plan.source,
            plan.manifest,
            targets,
            workers=workers,
            address=address,
            overwrite=plan.overwrite,
        )
        return assignment, manifests


def _decisions(assignment: pa.Table, names: frozenset[str], path: str) -> pa.Table:
    """Returns the decisions for a dataset that gets the pictures of some splits; the reason names where others are."""
    split = assignment["split"].combine_chunks()
    taken = _compute.is_in(split, value_set=pa.array(sorted(names)))
    other = "in_train" if path.endswith("/val") else "in_val" if "/" in path else None
    elsewhere = _compute.binary_join_element_wise("in", split, "_") if other is None else pa.scalar(other)
    reasons = _compute.if_else(_compute.is_null(split), JOINS_SPLITS, elsewhere)
    return pa.table(
        {"key": assignment["key"], "reason": _compute.if_else(taken, pa.scalar(None, pa.string()), reasons)}
    )


def dry_run(plan: SplitPlan) -> dict[str, Any]:
    """Returns what the plan would do; measures must be there already.

    Raises:
        UsageError: as `assign_pictures`; measures are missing.
    """
    measures = read_measures(plan.source, plan.manifest, plan.rule.columns)
    facts = assign_pictures(plan, measures).described()
    datasets = [storage.join(plan.destination, path) for path in plan.datasets]
    return {"source": plan.source, "destination": plan.destination, "datasets": datasets, **facts}
