"""What an audit finds: pictures that deserve a look, each with a kind, a score and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library.choosing.labels.confident_learning import LabelErrors
from library.choosing.labels.outliers import far_out

#: A picture that deserves a look. `score` ranks the findings of one kind, the most suspicious highest; scores of
#: different kinds are not comparable. A picture may have several findings. A leak names its copy in the earlier split.
FINDING_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("split", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("detail", pa.string()),
        pa.field("label", pa.string()),
        pa.field("copy_split", pa.string()),
        pa.field("copy_key", pa.string()),
    ]
)

#: The kinds, the most harmful first, with the title of each on the page.
KINDS: Mapping[str, str] = {
    "leak": "Leaks between splits",
    "label_error": "Labels that are probably wrong",
    "unreadable": "Pictures that cannot be decoded",
    "outlier": "Pictures unlike the others",
    "extreme": "Extreme scores",
    "odd_size": "Odd sizes",
}

#: Measures whose extremes are findings; the others follow from the size of a picture.
EXTREMES = ("brightness", "contrast", "entropy", "sharpness", "colourfulness")

#: A class with fewer pictures than this share of the median class is rare.
RARE = 0.2


@dataclass(frozen=True)
class Member:
    """The pictures of one split, in the order of the dataset.

    Attributes:
        split: its name.
        keys: of its pictures.
        labels: of its pictures, None where there is none.
    """

    split: str
    keys: Sequence[str]
    labels: Sequence[str | None]


def findings_of(
    member: Member, kind: str, rows: Sequence[int], scores: Sequence[float], details: Sequence[str]
) -> pa.Table:
    """Returns a table of findings of one kind, in the order of `rows`, which are row numbers of the split."""
    return pa.table(
        {
            "key": [member.keys[row] for row in rows],
            "split": [member.split] * len(rows),
            "kind": [kind] * len(rows),
            "score": np.asarray(scores, np.float64),
            "detail": list(details),
            "label": [member.labels[row] for row in rows],
            "copy_split": [None] * len(rows),
            "copy_key": [None] * len(rows),
        },
        FINDING_SCHEMA,
    )


def leaks(split: str, other: str, copies: pa.Table) -> pa.Table:
    """Returns findings from what `find_leaks` has found: pictures of `split` of which `other` holds a copy."""
    details = [
        f"{row['kind'].replace('_', ' ')} of {row['train_key']} in {other}"
        + ("" if row["labels_agree"] is not False else f", which is labelled {row['train_label']}")
        for row in copies.to_pylist()
    ]
    # A copy of the same file ranks before one that is only near, even where all bits of their hashes are equal.
    near = np.array([kind == "near_duplicate" for kind in copies["kind"].to_pylist()], np.float64)
    distances = near + copies["distance"].to_numpy().astype(np.float64)
    return pa.table(
        {
            "key": copies["key"],
            "split": [split] * copies.num_rows,
            "kind": ["leak"] * copies.num_rows,
            "score": 1 - np.minimum(distances, 65) / 65,
            "detail": details,
            "label": copies["label"],
            "copy_split": [other] * copies.num_rows,
            "copy_key": copies["train_key"],
        },
        FINDING_SCHEMA,
    )


def label_errors(
    members: Sequence[Member], places: Sequence[tuple[int, int]], errors: LabelErrors, classes: Sequence[str]
) -> pa.Table:
    """Returns findings from label errors.

    Args:
        members: the splits.
        places: for each row that `errors` counts, the number of its split and its row there.
        errors: the label errors.
        classes: class names by id.
    """
    tables: list[pa.Table] = [FINDING_SCHEMA.empty_table()]
    for number, member in enumerate(members):
        rows: list[int] = []
        scores: list[float] = []
        details: list[str] = []
        suspects = zip(errors.rows.tolist(), errors.suggested.tolist(), errors.quality.tolist(), strict=True)
        for row, suggested, quality in suspects:
            if places[row][0] == number:
                rows.append(places[row][1])
                scores.append(1 - quality)
                details.append(f"labelled {member.labels[rows[-1]]}, looks like {classes[suggested]}")
        tables.append(findings_of(member, "label_error", rows, scores, details))
    return pa.concat_tables(tables)


def outliers(member: Member, rows: Sequence[int], distances: NDArray[np.float64]) -> pa.Table:
    """Returns the pictures that are far from their neighbours.

    Args:
        member: the split.
        rows: the rows that have a distance.
        distances: to the neighbours of each of them.
    """
    outside = far_out(distances)
    chosen = np.flatnonzero(outside > 0)
    middle = float(np.median(distances)) if len(distances) else 0.0
    details = [
        f"distance to its nearest pictures {distances[row]:.2f}; the median is {middle:.2f}" for row in chosen.tolist()
    ]
    return findings_of(member, "outlier", [rows[row] for row in chosen.tolist()], outside[chosen].tolist(), details)


def extremes(member: Member, measures: pa.Table) -> pa.Table:
    """Returns the pictures of which a score is far from that of most pictures of the split.

    Args:
        member: the split.
        measures: with columns of `EXTREMES`, in the order of the split.
    """
    tables: list[pa.Table] = [FINDING_SCHEMA.empty_table()]
    for name in EXTREMES:
        values = _numbers(measures, name)
        outside = far_out(values)
        chosen = np.flatnonzero(outside).tolist()
        if chosen:
            lower, upper = np.nanquantile(values, (0.25, 0.75))
            details = [f"{name} {values[row]:.3g}; half of all have {lower:.3g} to {upper:.3g}" for row in chosen]
            tables.append(findings_of(member, "extreme", chosen, np.abs(outside[chosen]).tolist(), details))
    return pa.concat_tables(tables)


def odd_sizes(member: Member, measures: pa.Table) -> pa.Table:
    """Returns the pictures whose area or proportions are far from those of most pictures of the split."""
    width, height = _numbers(measures, "width"), _numbers(measures, "height")
    areas, proportions = np.log2(width * height), np.log2(width / height)
    outside = np.maximum(np.abs(far_out(areas)), np.abs(far_out(proportions)))
    chosen = np.flatnonzero(outside).tolist()
    if not chosen:
        return FINDING_SCHEMA.empty_table()
    typical = f"{np.nanmedian(width):.0f}x{np.nanmedian(height):.0f}"
    details = [f"{width[row]:.0f}x{height[row]:.0f} pixels; the median is {typical}" for row in chosen]
    return findings_of(member, "odd_size", chosen, outside[chosen].tolist(), details)


def unreadable(member: Member, reasons: Sequence[str | None]) -> pa.Table:
    """Returns the pictures whose pixels could not be measured, with the reason."""
    rows = [row for row, reason in enumerate(reasons) if reason is not None]
    return findings_of(member, "unreadable", rows, [1.0] * len(rows), [str(reasons[row]) for row in rows])


def _numbers(measures: pa.Table, name: str) -> NDArray[np.float64]:
    column = measures[name].cast(pa.float64())
    return column.to_numpy(zero_copy_only=False) if column.null_count else column.to_numpy()


def ranked(tables: Sequence[pa.Table]) -> pa.Table:
    """Joins findings: by kind, the most harmful first, then by score, then by split and key."""
    table = pa.concat_tables([FINDING_SCHEMA.empty_table(), *tables])
    places = {kind: place for place, kind in enumerate(KINDS)}
    order = pa.array([places[kind] for kind in table["kind"].to_pylist()], pa.int64())
    keys = [("order", "ascending"), ("score", "descending"), ("split", "ascending"), ("key", "ascending")]
    return table.append_column("order", order).sort_by([*keys, ("detail", "ascending")]).drop_columns(["order"])


@dataclass(frozen=True)
class ClassBalance:
    """How many pictures the classes have in each split.

    Attributes:
        counts: pictures by class and split.
        rare: classes with fewer than a fifth of the median class's pictures, over all splits.
        absent: classes by the split that lacks them.
        ratio: pictures of the largest class for each of the smallest; None without labels.
    """

    counts: Mapping[str, Mapping[str, int]]
    rare: Sequence[str]
    absent: Mapping[str, Sequence[str]]
    ratio: float | None


def class_balance(by_split: Mapping[str, Mapping[str, int]]) -> ClassBalance:
    """Compares the sizes of classes.

    Args:
        by_split: pictures of each class, by split.
    """
    names = sorted({name for counts in by_split.values() for name in counts})
    counts = {name: {split: counts.get(name, 0) for split, counts in by_split.items()} for name in names}
    totals = {name: sum(of_class.values()) for name, of_class in counts.items()}
    middle = float(np.median(list(totals.values()))) if totals else 0.0
    return ClassBalance(
        counts,
        [name for name in names if totals[name] < RARE * middle],
        {split: [name for name in names if not of_split.get(name)] for split, of_split in by_split.items()},
        max(totals.values()) / max(min(totals.values()), 1) if totals else None,
    )
