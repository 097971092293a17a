"""Groups of pictures that must stay on one side of a split: equal ones, near ones, and equal values of a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library.choosing.duplicates.fingerprints import Rule, fingerprints
from library.choosing.duplicates.groups import joined_groups

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them


@dataclass(frozen=True)
class Groups:
    """Pictures in groups.

    Attributes:
        of_pictures: number of the group of each picture, 0 to G - 1, in order of first occurrence.
        names: the G groups' names, which stay the same when pictures are added to the dataset: `COLUMN=VALUE` with the
            smallest value of the column in the group, or else the smallest key.
    """

    of_pictures: NDArray[np.int64]
    names: tuple[str, ...]


def group_pictures(table: pa.Table, rule: Rule | None = None, column: str | None = None) -> NDArray[np.int64]:
    """Groups pictures that have something in common; groups that share a picture are joined.

    Args:
        table: N rows with the columns of `rule.columns`, and the column. Null is equal to nothing.
        rule: when two pictures are duplicates; None if duplicates may be apart.
        column: name of the column whose equal values belong together; None for none.

    Returns:
        N group numbers, in order of first occurrence.
    """
    alone = np.arange(table.num_rows)
    groupings = [alone] if rule is None else [fingerprints(table, rule).groups()]
    if column is not None:
        codes = _compute.dictionary_encode(table[column].combine_chunks()).indices
        known = codes.is_valid().to_numpy(zero_copy_only=False)
        # Numbers above those of all values, so that a picture without a value is alone.
        groupings.append(np.where(known, codes.fill_null(0).to_numpy(), table.num_rows + alone))
    return joined_groups(groupings)


def name_groups(
    of_pictures: NDArray[np.int64], keys: Sequence[str], column: str = "", values: Sequence[Any] | None = None
) -> Groups:
    """Names groups of pictures.

    A group keeps its name unless a picture joins it that has a smaller value, or, where groups are not of a column, a
    smaller key. Keys often begin with a number or a date, so new pictures seldom have the smaller one.

    Args:
        of_pictures: N numbers, 0 to G - 1 in order of first occurrence, as `group_pictures` returns them.
        keys: of the N pictures.
        column: the column whose equal values are in one group; empty for none.
        values: of that column; None for a picture without one.
    """
    names: dict[int, str] = {}
    for number, key in zip(of_pictures.tolist(), keys, strict=True):
        if number not in names or key < names[number]:
            names[number] = key
    smallest: dict[int, str] = {}
    for number, value in zip(of_pictures.tolist(), values or (), strict=values is not None):
        if value is not None and (number not in smallest or str(value) < smallest[number]):
            smallest[number] = str(value)
    names |= {number: f"{column}={value}" for number, value in smallest.items()}
    return Groups(of_pictures, tuple(names.values()))


def straddling(of_pictures: NDArray[np.int64], splits: Sequence[str | None]) -> dict[int, set[str]]:
    """Returns the groups whose pictures are in several splits, with the names of these; None is in no split."""
    seen: dict[int, set[str]] = {}
    for number, split in zip(of_pictures.tolist(), splits, strict=True):
        if split is not None:
            seen.setdefault(number, set()).add(split)
    return {number: names for number, names in seen.items() if len(names) > 1}
