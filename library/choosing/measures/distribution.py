"""How the scores of a dataset are distributed: a histogram of each, and the pictures at both ends.

Files of the side table are read one after the other, so memory does not grow with the number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

#: Bins of a histogram; from finer ones (`_FINE` in each) the quantiles are read.
BINS, _FINE = 48, 64
#: Pictures shown at each end.
ENDS = 6
_QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
# A score whose largest value is this many times its smallest is shown on a logarithmic axis.
_LOG_FROM = 50.0


@dataclass(frozen=True)
class End:
    """A picture at one end of a score.

    Attributes:
        value: its score.
        shard: number of its shard.
        row: in that shard.
        key: of the picture.
    """

    value: float
    shard: int
    row: int
    key: str


@dataclass
class Distribution:
    """One score over all pictures of a dataset.

    Attributes:
        name: of the measure.
        measured: pictures that have it.
        missing: pictures that do not, as they could not be measured.
        low: smallest value.
        high: largest value.
        log: whether the bins are equal on a logarithmic axis.
        edges: of the bins, one more than `counts`.
        counts: pictures in each bin.
        quantiles: values by share, read from bins of which there are 3,072 from `low` to `high`.
        lowest: pictures with the smallest values, the smallest first.
        highest: pictures with the largest values, the largest first.
    """

    name: str
    measured: int = 0
    missing: int = 0
    low: float = np.inf
    high: float = -np.inf
    log: bool = False
    edges: list[float] = field(default_factory=list[float])
    counts: list[int] = field(default_factory=list[int])
    quantiles: dict[float, float] = field(default_factory=dict[float, float])
    lowest: list[End] = field(default_factory=list[End])
    highest: list[End] = field(default_factory=list[End])


def distributions(
    parts: Callable[[], Iterable[pa.Table]], names: Sequence[str], ends: int = ENDS
) -> list[Distribution]:
    """Returns the distribution of each score that any picture has.

    Args:
        parts: returns the tables of all shards, in order, with `key` and the columns; called twice.
        names: of numeric measures.
        ends: pictures to keep at each end.
    """
    by_name = {name: Distribution(name) for name in names}
    for number, table in enumerate(parts()):
        for name, one in by_name.items():
            _extend(one, number, table["key"], _values(table, name), ends)
    by_name = {name: one for name, one in by_name.items() if one.measured}
    fine = {name: np.zeros(BINS * _FINE, np.int64) for name in by_name}
    edges = {name: _edges(one) for name, one in by_name.items()}
    for table in parts():
        for name, counts in fine.items():
            values = _values(table, name)
            values = values[np.isfinite(values)]
            places = np.searchsorted(edges[name], values, side="right") - 1
            counts += np.bincount(np.clip(places, 0, len(counts) - 1), minlength=len(counts))
    for name, one in by_name.items():
        one.edges = edges[name][::_FINE].tolist()
        one.counts = fine[name].reshape(BINS, _FINE).sum(axis=1).tolist()
        reached = np.cumsum(fine[name])
        for share in _QUANTILES:
            place = int(np.searchsorted(reached, share * one.measured))
            one.quantiles[share] = float(min(max(edges[name][place + (share >= 0.5)], one.low), one.high))
    return list(by_name.values())


def _values(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Returns a column as numbers, NaN where a picture has no score."""
    return table[name].cast(pa.float64()).to_numpy().astype(np.float64)


def _extend(one: Distribution, shard: int, keys: pa.ChunkedArray, values: NDArray[np.float64], ends: int) -> None:
    rows = np.flatnonzero(np.isfinite(values))
    one.measured += len(rows)
    one.missing += len(values) - len(rows)
    if not len(rows):
        return
    present = values[rows]
    one.low, one.high = min(one.low, float(present.min())), max(one.high, float(present.max()))
    for kept, sign in ((one.lowest, 1.0), (one.highest, -1.0)):
        signed = sign * present
        # Only values that can still be among the ends are sorted.
        limit = sign * kept[-1].value if len(kept) == ends else np.inf
        candidates = np.flatnonzero(signed < limit)
        if len(candidates) > ends:
            threshold = np.partition(signed[candidates], ends - 1)[ends - 1]
            candidates = candidates[signed[candidates] <= threshold]
        best = candidates[np.argsort(signed[candidates], kind="stable")][:ends]
        for place, row in zip(best.tolist(), rows[best].tolist(), strict=True):
            kept.append(End(float(present[place]), shard, row, keys[row].as_py()))
        kept.sort(key=lambda end: (sign * end.value, end.shard, end.row))
        del kept[ends:]


def _edges(one: Distribution) -> NDArray[np.float64]:
    low, high = one.low, one.high
    one.log = low > 0 and high / low > _LOG_FROM
    if high <= low:
        low, high = low - 0.5, high + 0.5
    number = BINS * _FINE + 1
    return np.geomspace(low, high, number) if one.log else np.linspace(low, high, number)


def by_shard(measured: Iterable[Distribution]) -> Mapping[int, list[int]]:
    """Returns the rows of all pictures at an end, by the number of their shard, each once and in order."""
    rows: dict[int, set[int]] = {}
    for one in measured:
        for end in (*one.lowest, *one.highest):
            rows.setdefault(end.shard, set()).add(end.row)
    return {shard: sorted(rows[shard]) for shard in sorted(rows)}
