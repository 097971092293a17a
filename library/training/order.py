"""In which order the pictures of an epoch come, for any number of workers the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from library.randomness import generator


def epoch_order(labels: NDArray[np.int64], seed: int, epoch: int, *, balanced: bool = False) -> NDArray[np.int64]:
    """Rows in the order in which an epoch takes them.

    Args:
        labels: class ids of all rows.
        seed: of the recipe.
        epoch: from 0.
        balanced: every class equally often (rows are then drawn with replacement); else every row once.

    Returns:
        As many row numbers as there are labels.
    """
    random = generator("order", seed, epoch)
    if not balanced:
        return random.permutation(len(labels))
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    drawn = random.integers(len(classes), size=len(labels))
    by_class = np.argsort(inverse, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return by_class[starts[drawn] + (random.random(len(labels)) * counts[drawn]).astype(np.int64)]


def batch_rows(order: NDArray[np.int64], step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The rows that one worker takes of the batch of a step: a batch holds the same rows for every `world_size`."""
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Whole batches of an epoch; the rows left over come in another epoch, whose order is another."""
    return max(1, rows // batch_size)


def smallest_part(batch_size: int, world_size: int, accumulate: int) -> int:
    """Pictures that are learned from at once, in the smallest part that any worker takes of a batch."""
    local = batch_size // world_size
    return local // min(accumulate, max(local, 1))
