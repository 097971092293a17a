"""Pictures with several labels: each distinct set of class names is one number, as a class is where there is one label.

So a picture in training has one whole number as its label in both cases, and only the loss and the scores know the
difference: `LabelSets.sets` says which classes a number stands for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import pyarrow as pa

from library.bundle.description import BundleRecord, load_members
from library.errors import UsageError
from library.recipe.yaml_text import load_yaml


@dataclass(frozen=True)
class LabelSets:
    """The sets of labels of a dataset's pictures.

    Attributes:
        column: the column with a list of names for each picture.
        names: class names, in the order of the model's outputs.
        texts: each set as text, in the order of its number; see `text`.
    """

    column: str
    names: tuple[str, ...]
    texts: tuple[str, ...] = ()

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def text(self, labels: Sequence[Any]) -> str:
        """Returns the set of a picture's labels as text; names that are not classes are left out."""
        return json.dumps(sorted({str(label) for label in labels} & self._known), ensure_ascii=False)

    @cached_property
    def sets(self) -> list[list[int]]:
        """The class numbers of each set."""
        numbers = {name: number for number, name in enumerate(self.names)}
        return [[numbers[name] for name in json.loads(text)] for text in self.texts]

    def name_counts(self, set_counts: Iterable[int]) -> dict[str, int]:
        """Returns the number of pictures that have each class, from those that have each set."""
        counts = [0] * len(self.names)
        for classes, count in zip(self.sets, set_counts, strict=True):
            for number in classes:
                counts[number] += count
        return dict(zip(self.names, counts, strict=True))


def check_column(dataset: str, schema: pa.Schema, column: str, option: str = "data.labels") -> None:
    """Refuses a column that does not hold lists of names; `option` named it.

    Raises:
        UsageError: names the columns that would work.
    """
    if column in schema.names and _is_list_of_names(schema.field(column).type):
        return
    usable = ", ".join(field.name for field in schema if _is_list_of_names(field.type)) or "none of its columns does"
    what = f"holds {schema.field(column).type}" if column in schema.names else "does not exist"
    raise UsageError(
        f"{option}: the column '{column}' of {dataset} {what}; it must hold a list of names for each picture ({usable})"
    )


def _is_list_of_names(dtype: pa.DataType) -> bool:
    if not (pa.types.is_list(dtype) or pa.types.is_large_list(dtype)):
        return False
    value = cast(Any, dtype).value_type
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_integer(value)


def trained_column(uri: str, record: BundleRecord) -> str | None:
    """Returns the column that a bundle, or the first member of an ensemble, learned from; None if it does not say."""
    members = load_members(uri, record)
    recipe = (members[0][1] if members else record).provenance.get("recipe")
    fields = load_yaml(recipe) if isinstance(recipe, str) else {}
    data = fields.get("data") if isinstance(fields, Mapping) else None
    column = data.get("labels") if isinstance(data, Mapping) else None
    return column if isinstance(column, str) else None


def count_names(dataset: str, column: str, lists: Iterable[Sequence[Any] | None]) -> Counter[str]:
    """Counts the pictures that have each name.

    Raises:
        UsageError: a picture has no list. An empty one says that no class applies.
    """
    counts: Counter[str] = Counter()
    missing = 0
    for labels in lists:
        missing += labels is None
        counts.update({str(label) for label in labels or ()})
    if missing:
        raise UsageError(
            f"{missing:,} pictures of {dataset} have no list in the column '{column}'; an empty list says that no "
            "class applies, so filter out those whose classes are not known"
        )
    return counts
