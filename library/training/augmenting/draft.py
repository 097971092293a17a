"""A batch while it is drawn: the size of each picture, what is done to it, and which cannot be used. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture
from library.training.augmenting.operations import Drawn, Move, Operation
from library.training.augmenting.streams import RandomStreams, Rows


class Draft:
    """Collects the operations of a batch, and keeps the sizes that pictures have after them.

    Args:
        streams: the random generator of each picture.
        shapes: n x 3; height, width and channels of each picture.

    Attributes:
        streams: as given.
        shapes: the shapes after all operations so far.
    """

    def __init__(self, streams: RandomStreams, shapes: NDArray[Any]) -> None:
        self.streams = streams
        self.shapes = np.array(shapes, np.int64)
        self._usable = np.ones(len(streams), bool)
        self._operations: list[Operation] = []
        self._rejected: dict[int, BadPicture] = {}

    @property
    def rows(self) -> Rows:
        """The pictures that can still be used."""
        return np.flatnonzero(self._usable)

    def usable(self, rows: Rows) -> Rows:
        """Those of some pictures that can still be used."""
        return rows if not self._rejected else rows[self._usable[rows]]

    def reject(self, rows: Rows, reason: Callable[[int], BadPicture]) -> None:
        """Rejects pictures; `reason` is called with the number of each."""
        for row in rows.tolist():
            self._rejected[row] = reason(row)
            self._usable[row] = False

    def add(self, operation: Operation) -> None:
        """Adds an operation; a move of the pictures that were moved just before becomes one with that."""
        if not len(operation.rows):
            return
        last = self._operations[-1] if self._operations else None
        if isinstance(operation, Move):
            self.shapes[operation.rows, 0] = operation.ys.shape[1]
            self.shapes[operation.rows, 1] = operation.xs.shape[1]
            both = last.then(operation) if isinstance(last, Move) else None
            if both is not None:
                self._operations[-1] = both
                return
        self._operations.append(operation)

    def by_shape(self, rows: Rows) -> Iterator[tuple[tuple[int, int, int], Rows]]:
        """Yields each shape of some pictures, and its pictures."""
        if not len(rows):
            return
        shapes = self.shapes[rows]
        if (shapes == shapes[0]).all():
            distinct, numbers = shapes[:1], np.zeros(len(rows), np.int64)
        else:
            distinct, numbers = np.unique(shapes, axis=0, return_inverse=True)
        for number, (height, width, channels) in enumerate(distinct.tolist()):
            yield (height, width, channels), rows[numbers.reshape(-1) == number]

    def drawn(self) -> Drawn:
        """What was drawn. The operations still hold pictures that were rejected later; draw again without these."""
        return Drawn(tuple(self._operations), self.shapes, self._rejected)
