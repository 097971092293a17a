"""The page of `striate audit --report`: the most suspicious pictures of every kind, and the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from library import storage
from library.choosing.labels.findings import KINDS, ClassBalance
from library.dataset.manifest import Manifest
from library.dataset.shards import read_columns, read_rows
from library.errors import BadPicture
from library.evaluation.report.templates import base64_text, template
from library.imaging import codec
from library.imaging.contact_sheet import small_copy

#: Pictures of each kind on the page; all are in the table of findings.
MOST_PICTURES = 24
#: Classes in the table of classes, the smallest first.
MOST_CLASSES = 100


@dataclass(frozen=True)
class ConfusedLabels:
    """Pictures that have one label and probably another class."""

    label: str
    probable: str
    pictures: float


@dataclass(frozen=True)
class AuditContent:
    """What the page shows.

    Attributes:
        datasets: URI of each split.
        manifests: of each split.
        findings: all of them, ranked.
        counts: of findings by kind and split.
        balance: sizes of the classes.
        confused: pairs of classes whose labels are most often mixed up.
        wrong_share: estimated share of wrong labels; None where labels were not looked at.
        accuracy: share of labels with which classifiers that never saw them agree; None where no labels were judged.
        skipped: what was not looked at, and why.
        features: what computed the features; None for none.
        footer: a line with date and version.
    """

    datasets: Mapping[str, str]
    manifests: Mapping[str, Manifest]
    findings: pa.Table
    counts: Mapping[str, Mapping[str, int]]
    balance: ClassBalance
    confused: Sequence[ConfusedLabels]
    wrong_share: float | None
    accuracy: float | None
    skipped: Sequence[str]
    features: str | None
    footer: str


@dataclass(frozen=True)
class ShownFinding:
    """A finding with small pictures, as bytes and format; None for one that cannot be decoded.

    Attributes:
        key: of the picture.
        split: that holds it.
        label: of the picture.
        detail: what is the matter with it.
        images: the picture, and beside it the one in another split of which it is a copy, if it is.
    """

    key: str
    split: str
    label: str | None
    detail: str
    images: Sequence[tuple[bytes, str] | None]


@dataclass(frozen=True)
class ShownKind:
    """The most suspicious findings of one kind."""

    kind: str
    title: str
    total: int
    shown: Sequence[ShownFinding]


def render_audit(content: AuditContent) -> str:
    """Returns the page as one HTML document without scripts; reads the pictures that it shows.

    Raises:
        StriateError: a shard cannot be read.
    """
    totals = {name: sum(of_class.values()) for name, of_class in content.balance.counts.items()}
    classes = sorted(totals, key=lambda name: (totals[name], name))
    largest = max(totals.values(), default=1)
    names = [storage.name_of(uri) for uri in content.datasets.values()]
    return template("library.choosing.labels", "audit.html").render(
        title=f"Audit of {', '.join(names)}",
        content=content,
        kinds=_shown(content),
        pictures={name: manifest.rows for name, manifest in content.manifests.items()},
        classes=[(name, totals[name], 100 * totals[name] / largest) for name in classes[:MOST_CLASSES]],
        hidden=max(0, len(classes) - MOST_CLASSES),
        number="{:,}".format,
        percent="{:.1%}".format,
        base64=base64_text,
    )


def _shown(content: AuditContent) -> list[ShownKind]:
    findings = content.findings.to_pylist()
    by_kind = {kind: [row for row in findings if row["kind"] == kind] for kind in KINDS}
    firsts = {kind: rows[:MOST_PICTURES] for kind, rows in by_kind.items() if rows}
    wanted: dict[str, set[str]] = {}
    for row in (row for rows in firsts.values() for row in rows):
        for split, key in _pictures(row):
            wanted.setdefault(split, set()).add(key)
    images = {split: _images(content, split, keys) for split, keys in wanted.items()}
    return [
        ShownKind(
            kind,
            KINDS[kind],
            len(by_kind[kind]),
            [
                ShownFinding(
                    row["key"],
                    row["split"],
                    row["label"],
                    row["detail"],
                    [images[split].get(key) for split, key in _pictures(row)],
                )
                for row in rows
            ],
        )
        for kind, rows in firsts.items()
    ]


def _pictures(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns split and key of each picture that a finding shows."""
    shown = [(row["split"], row["key"])]
    return shown if row["copy_key"] is None else [*shown, (row["copy_split"], row["copy_key"])]


def _images(content: AuditContent, split: str, keys: set[str]) -> dict[str, tuple[bytes, str]]:
    dataset, shards = content.datasets[split], content.manifests[split].shards
    stored = read_columns(dataset, ["key"], [shard.name for shard in shards])["key"].to_pylist()
    table = read_rows(dataset, shards, [row for row, key in enumerate(stored) if key in keys])
    images: dict[str, tuple[bytes, str]] = {}
    for record in table.select(["key", "image"]).to_pylist():
        try:
            images[record["key"]] = small_copy(codec.decode(record["image"]["bytes"] or b""))
        except BadPicture:
            continue
    return images
