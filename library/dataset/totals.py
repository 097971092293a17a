"""The sum of many shard reports, in little memory.

A report of a shard with a thousand classes takes some 100 kB of memory, and there may be a hundred thousand shards.
Only the entries that the manifest lists are kept for each shard; everything else is summed up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from library.dataset.histograms import Histograms
from library.dataset.manifest import FileEntry, ShardReport, Tally

_TALLIES_HELD = 256


class Totals:
    """The sum of shard reports, the same in any order except for the last digits of `seconds`.

    Attributes:
        shards: how many reports were added.
        seconds: sum of the seconds spent in each stage.
    """

    def __init__(self) -> None:
        self.shards = 0
        self.seconds: Counter[str] = Counter()
        self._outputs: list[FileEntry] = []
        self._rejects: list[FileEntry] = []
        self._tallies: list[Tally] = []
        self._histograms: Histograms | None = None

    @classmethod
    def of(cls, reports: Iterable[ShardReport]) -> Totals:
        """Returns the sum of `reports`."""
        totals = cls()
        for report in reports:
            totals.add(report)
        return totals

    def add(self, report: ShardReport) -> None:
        """Adds the report of one shard."""
        self.shards += 1
        self.seconds.update(report.seconds)  # pyright: ignore[reportArgumentType] -- a Counter sums floats as well
        self._outputs.append(report.output)
        if report.rejects is not None:
            self._rejects.append(report.rejects)
        self._tallies.append(report.tally)
        if len(self._tallies) >= _TALLIES_HELD:
            self._tallies = [self.tally]
        if report.histograms is not None:
            self._histograms = self._histograms or Histograms()
            self._histograms.merge(Histograms.from_dict(report.histograms))

    @property
    def tally(self) -> Tally:
        """Counts over all pictures."""
        return Tally.total(self._tallies)

    @property
    def outputs(self) -> list[FileEntry]:
        """The shards, by name."""
        return sorted(self._outputs, key=lambda entry: entry.name)

    @property
    def rejects(self) -> list[FileEntry]:
        """The files of rejects, by name."""
        return sorted(self._rejects, key=lambda entry: entry.name)

    @property
    def histograms(self) -> dict[str, Any] | None:
        """Histograms of all pictures; None where nothing was measured."""
        return None if self._histograms is None else self._histograms.to_dict()
