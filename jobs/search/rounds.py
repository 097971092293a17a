"""Rounds of units within a budget: what is computed next, what is done, and how much time is left. Imports no Ray.

A search is a generator: it yields a `Round` and gets the results of its units, as many as there was time for. What has
a file is not computed again. So the same search resumes after a kill, and can be run without Ray in a test.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np

from library.choosing.filter_search.space import IDENTITY
from library.choosing.filter_search.trials import Unit, UnitResult
from library.errors import StriateError

#: What a search yields and gets.
Script: TypeAlias = Generator["Round", Mapping[Unit, UnitResult], None]


@dataclass(frozen=True)
class Round:
    """Units that may be computed in any order, the first ones first.

    Attributes:
        title: for the progress line: the stage, and what is compared.
        units: of this round.
        until_s: no unit is begun that would end later than so many seconds after the start; None for no limit.
        per_block: units of one candidate that a worker computes in a row, as they share their pictures.
        expected_s: seconds of a unit, before the first of the round is done.
    """

    title: str
    units: Sequence[Unit]
    until_s: float | None = None
    per_block: int = 4
    expected_s: float = 0.0


@dataclass(frozen=True)
class Block:
    """Units that one worker computes in a row.

    Attributes:
        name: what is tested, for the progress line.
        units: their texts.
    """

    name: str
    units: tuple[str, ...]


def stopwatch() -> Callable[[], float]:
    """Returns a function that returns the seconds since this call."""
    start = time.monotonic()
    return lambda: time.monotonic() - start


class UnitStore(Protocol):
    """The files of units."""

    def read(self, unit: Unit) -> UnitResult | None:
        """Returns the result of a unit; None if it has no file."""
        ...


@dataclass
class Rounds:
    """Runs a script: hands out the blocks of its rounds, and gives it their results.

    Args:
        script: the search.
        store: the files of units.
        workers: that compute at the same time.
        elapsed: returns the seconds since the search began.

    Attributes:
        current: the round that is computed; None after the last one.
        computed: units that were computed by this run.
    """

    script: Script
    store: UnitStore
    workers: int = 1
    elapsed: Callable[[], float] = field(default_factory=lambda: stopwatch())
    current: Round | None = None
    computed: int = 0

    def __post_init__(self) -> None:
        self._results: dict[Unit, UnitResult] = {}
        self._seconds: dict[Unit, float] = {}
        self._queue: deque[tuple[Block, tuple[Unit, ...]]] = deque()
        self._at_work: dict[Block, tuple[Unit, ...]] = {}
        self._missed: set[Unit] = set()
        self._advance(first=True)

    @property
    def is_finished(self) -> bool:
        """Whether the script has ended."""
        return self.current is None

    @property
    def trainings(self) -> int:
        """Units with a result so far; tests are of networks that were counted before."""
        return sum(unit.stage != "test" for unit in self._seconds)

    @property
    def seconds(self) -> float:
        """Seconds that they took, added up over workers."""
        return sum(self._seconds.values())

    @property
    def at_work(self) -> Sequence[str]:
        """Names of what is computed at this moment, for the progress line."""
        return list(dict.fromkeys(block.name for block in self._at_work))

    @property
    def waiting(self) -> int:
        """Units of the current round that are not done."""
        return sum(len(units) for _, units in self._queue) + sum(map(len, self._at_work.values()))

    def take(self) -> Block | None:
        """Returns the next block; None while others are at work on the round's last ones, and after the end."""
        while self.current is not None:
            if self._queue and self._ends_too_late(self._queue[0][1]):
                self._queue.clear()
            if self._queue:
                block, units = self._queue.popleft()
                self._at_work[block] = units
                return block
            if self._at_work:
                return None
            self._advance()
        return None

    def is_too_late(self, block: Block) -> bool:
        """Whether a block that was handed out would end after the round's time if it were begun now."""
        return self._ends_too_late(self._at_work[block])

    def withdraw(self, block: Block) -> None:
        """Leaves out a block that waits for a worker; what one that was lost has computed of it counts."""
        self._read(block)
        self._next()

    def done(self, block: Block) -> None:
        """Takes the results of a block from its files; a unit without one is computed once more.

        Raises:
            StriateError: a unit has no file the second time either; names it.
        """
        missing = self._read(block)
        again = [unit for unit in missing if unit in self._missed]
        if again:
            raise StriateError(f"the result of {again[0].candidate.label} was written twice and cannot be read")
        self._missed.update(missing)
        self._queue.extendleft(_blocks(missing, 1, self.workers))
        self._next()

    def give_up(self, block: Block, reason: str) -> None:
        """Takes a candidate out whose training fails or ends its worker each time. Writes no file, so a resumed search
        tries again.

        Args:
            block: what was computed.
            reason: as a sentence.

        Raises:
            StriateError: it is the identity, without which nothing can be compared.
        """
        for unit in self._at_work.pop(block):
            result = self.store.read(unit)
            if result is None and unit.candidate == IDENTITY:
                raise StriateError(f"the recipe without a filter cannot be trained: {reason}")
            self._results[unit] = result or UnitResult(unit, np.zeros(0, np.bool_), 0.0, 0.0, reason)
        self._next()

    def _read(self, block: Block) -> list[Unit]:
        """Takes the results of a block, which is no longer at work; returns its units without a file."""
        missing: list[Unit] = []
        for unit in self._at_work.pop(block):
            result = self.store.read(unit)
            if result is None:
                missing.append(unit)
                continue
            self._results[unit] = result
            self._seconds[unit] = result.seconds
            self.computed += 1
        return missing

    def _next(self) -> None:
        if not self._queue and not self._at_work:
            self._advance()

    def _ends_too_late(self, units: Sequence[Unit]) -> bool:
        until = None if self.current is None else self.current.until_s
        return until is not None and self.elapsed() + len(units) * self._mean_seconds() > until

    def _mean_seconds(self) -> float:
        """Mean seconds of this round's units that are done; as expected while there are none."""
        seconds = [result.seconds for result in self._results.values()]
        expected = 0.0 if self.current is None else self.current.expected_s
        return sum(seconds) / len(seconds) if seconds else expected

    def _advance(self, *, first: bool = False) -> None:
        """Goes to the next round that has something to compute."""
        while True:
            try:
                self.current = next(self.script) if first else self.script.send(self._results)
            except StopIteration:
                self.current = None
                return
            first = False
            self._results, missing = {}, list[Unit]()
            for unit in dict.fromkeys(self.current.units):
                result = self.store.read(unit)
                if result is None:
                    missing.append(unit)
                else:
                    self._results[unit] = result
                    self._seconds[unit] = result.seconds
            self._queue = deque(_blocks(missing, self.current.per_block, self.workers))
            if self._queue:
                return


def _blocks(units: Sequence[Unit], most: int, workers: int) -> list[tuple[Block, tuple[Unit, ...]]]:
    """Groups units of one candidate and stage, in the order of their first ones; smaller so that no worker is idle."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, unit in enumerate(units):
        groups.setdefault((unit.stage, unit.candidate.name), []).append(number)
    size = max(1, min(most, -(-len(units) // (2 * workers))))
    parts = sorted(
        members[first : first + size] for members in groups.values() for first in range(0, len(members), size)
    )
    blocks: list[tuple[Block, tuple[Unit, ...]]] = []
    for numbers in parts:
        part = tuple(units[number] for number in numbers)
        texts = tuple(json.dumps(unit.to_json()) for unit in part)
        blocks.append((Block(part[0].candidate.label, texts), part))
    return blocks
