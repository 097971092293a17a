"""The page of `striate dedup --report`: groups of duplicates as rows of pictures, the doubtful ones first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library import storage
from library.choosing.duplicates.fingerprints import NEAR, REASONS, SIMILAR, Fingerprints
from library.choosing.duplicates.keeping import Duplicates
from library.choosing.duplicates.neighbours import Indices
from library.errors import BadPicture
from library.evaluation.report.templates import base64_text, template
from library.imaging import codec
from library.imaging.contact_sheet import small_copy

#: Groups on the page, and pictures of each; a page of this size has about 3 MB.
MOST_GROUPS, MOST_PICTURES = 60, 8
#: The widest distance is computed in groups up to this size.
_MOST_COMPARED = 512
#: A picture that has no hash, or has no duplicate that stays.
_NO_DISTANCE = 255

#: Reads the encoded pictures of some rows, in their order.
ReadPictures = Callable[[Sequence[int]], Sequence[bytes]]


@dataclass(frozen=True)
class ShownPicture:
    """One picture of a row.

    Attributes:
        key: of the picture.
        label: class name; None without one.
        size: such as `640 x 480 jpeg, 48 kB`.
        fate: `kept`, `kept: labels disagree`, or the reason why it is dropped.
        kept: whether it stays.
        distance: bits to the picture that stays in its place; None where it has none.
        cosine: of its embedding and that of the picture that stays; None where they are not compared.
        image: a small copy, as bytes and format; None where it could not be decoded.
    """

    key: str
    label: str | None
    size: str
    fate: str
    kept: bool
    distance: int | None
    cosine: float | None
    image: tuple[bytes, str] | None


@dataclass(frozen=True)
class ShownGroup:
    """One row of the page.

    Attributes:
        number: of the group.
        size: its pictures; the row may show fewer.
        disagreeing: whether its labels disagree.
        widest: the most bits between any two of its pictures; None in a very large group or without hashes.
        pictures: the ones that stay first.
    """

    number: int
    size: int
    disagreeing: bool
    widest: int | None
    pictures: Sequence[ShownPicture]


@dataclass(frozen=True)
class Summary:
    """Numbers of a search for duplicates.

    Attributes:
        pictures: of the dataset.
        groups: of two or more pictures.
        in_groups: pictures in them.
        disagreeing: groups whose labels disagree.
        dropped: pictures by reason.
        by_distance: near duplicates that are dropped, by bits to the picture that stays.
        by_cosine: those that only their embeddings tell, by hundredths of the cosine, rounded down.
        leaks_kept: pictures in groups that stay whole, as their labels disagree, though pictures of the dataset that
            was compared with are among them.
    """

    pictures: int
    groups: int
    in_groups: int
    disagreeing: int
    dropped: Mapping[str, int]
    by_distance: Mapping[int, int]
    by_cosine: Mapping[str, int]
    leaks_kept: int = 0


def summarize(duplicates: Duplicates, reference: int = 0) -> Summary:
    """Counts groups and dropped pictures.

    Args:
        duplicates: the choice.
        reference: the last `reference` pictures are of another dataset.
    """
    grouped = duplicates.sizes > 1
    near = duplicates.distances[duplicates.reasons == NEAR]
    bits, numbers = np.unique(near[near != _NO_DISTANCE], return_counts=True)
    similar = duplicates.cosines[duplicates.reasons == SIMILAR]
    own = len(grouped) - reference
    whole = duplicates.disagreeing & ~np.isin(duplicates.groups, duplicates.groups[duplicates.reasons > 0])
    leaks = whole[:own] & np.isin(duplicates.groups[:own], duplicates.groups[own:])
    hundredths, members = np.unique(np.floor(similar * 100 + 0.001).astype(int), return_counts=True)
    return Summary(
        pictures=own,
        groups=len(np.unique(duplicates.groups[grouped])),
        in_groups=int(grouped.sum()),
        disagreeing=len(np.unique(duplicates.groups[duplicates.disagreeing])),
        dropped=duplicates.counts(),
        by_distance=dict(zip(bits.tolist(), numbers.tolist(), strict=True)),
        by_cosine={f"{part / 100:.2f}": number for part, number in zip(hundredths, members.tolist(), strict=True)},
        leaks_kept=int(leaks.sum()),
    )


def groups_to_show(duplicates: Duplicates) -> list[Indices]:
    """Returns the pictures of the groups that the page shows, bounded in both.

    Groups whose labels disagree come first, the largest of them at the top; then those that embeddings alone join, the
    least similar first, and those with the farthest near duplicates, as these may be wrong; then the rest, the largest
    first.
    """
    order = np.lexsort((duplicates.distances, duplicates.reasons > 0, duplicates.groups))
    order = order[duplicates.sizes[order] > 1]
    numbers = duplicates.groups[order]
    starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])) if len(order) else np.empty(0, np.int64)
    if not len(starts):
        return []
    reasons = duplicates.reasons[order]
    doubt = np.where(reasons == NEAR, duplicates.distances[order], 0.0)
    doubt = np.where(reasons == SIMILAR, 256 + 100 * (1 - duplicates.cosines[order]), doubt)
    farthest = np.maximum.reduceat(doubt, starts)
    first = order[starts]
    ranked = np.lexsort((first, -duplicates.sizes[first], -farthest, ~duplicates.disagreeing[first]))
    return [order[starts[group] : starts[group] + duplicates.sizes[first[group]]] for group in ranked[:MOST_GROUPS]]


def render_gallery(
    dataset: str,
    rule: str,
    pictures: pa.Table,
    prints: Fingerprints,
    duplicates: Duplicates,
    read: ReadPictures,
    *,
    reference: int = 0,
    reference_name: str = "",
    footer: str = "",
) -> str:
    """Returns the page as one HTML document without scripts.

    Args:
        dataset: URI, for the title.
        rule: one phrase that says which pictures count as duplicates.
        pictures: rows with the columns key, label, format, width, height and num_bytes.
        prints: of the pictures.
        duplicates: the choice.
        read: reads encoded pictures by row.
        reference: the last `reference` pictures are of another dataset.
        reference_name: URI of that dataset.
        footer: a line with date and version.
    """
    shown = groups_to_show(duplicates)
    rows = [int(row) for members in shown for row in members[:MOST_PICTURES]]
    images = dict(zip(rows, map(_small, read(rows)), strict=True)) if rows else {}
    facts = pictures.take(pa.array(rows, pa.int64())).to_pylist()
    by_row = dict(zip(rows, facts, strict=True))
    is_reference = np.arange(pictures.num_rows) >= pictures.num_rows - reference

    def picture(row: int) -> ShownPicture:
        reason, distance = int(duplicates.reasons[row]), int(duplicates.distances[row])
        cosine = float(duplicates.cosines[row])
        return ShownPicture(
            key=by_row[row]["key"],
            label=by_row[row]["label"],
            size=_size(by_row[row]),
            fate=_fate(reason, bool(is_reference[row]), bool(duplicates.disagreeing[row])),
            kept=reason == 0,
            distance=None if distance == _NO_DISTANCE else distance,
            cosine=None if math.isnan(cosine) else cosine,
            image=images[row],
        )

    groups = [
        ShownGroup(
            number=int(duplicates.groups[members[0]]),
            size=len(members),
            disagreeing=bool(duplicates.disagreeing[members[0]]),
            widest=_widest(prints, members),
            pictures=[picture(int(row)) for row in members[:MOST_PICTURES]],
        )
        for members in shown
    ]
    return template("library.choosing.duplicates", "gallery.html").render(
        title=f"Duplicates in {storage.name_of(dataset)}",
        dataset=dataset,
        rule=rule,
        summary=summarize(duplicates, reference),
        with_embeddings=prints.rule.cosine is not None,
        groups=groups,
        reference_name=reference_name,
        number="{:,}".format,
        base64=base64_text,
        footer=footer,
    )


def _fate(reason: int, is_reference: bool, disagreeing: bool) -> str:
    if reason:
        return "dropped: " + REASONS[reason].replace("_", " ")
    if is_reference:
        return "kept: in the other dataset"
    return "kept: labels disagree" if disagreeing else "kept"


def _small(data: bytes) -> tuple[bytes, str] | None:
    try:
        return small_copy(codec.decode(data))
    except BadPicture:
        return None


def _size(row: Mapping[str, Any]) -> str:
    return f"{row['width']} x {row['height']} {row['format']}, {row['num_bytes'] / 1000:,.1f} kB"


def _widest(prints: Fingerprints, members: NDArray[np.int64]) -> int | None:
    if len(members) > _MOST_COMPARED:
        return None
    between = prints.distance(members[:, None], members[None])
    known = between[between != _NO_DISTANCE]
    return int(known.max()) if len(known) else None
