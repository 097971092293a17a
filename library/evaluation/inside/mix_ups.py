"""Which classes a classifier confuses, from its probabilities: pairs of classes, with the pictures that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_THRESHOLD = 0.5


@dataclass(frozen=True)
class MixUp:
    """Pictures of one class that a classifier takes for another.

    Attributes:
        label: the class that they have.
        predicted: the class that they are taken for, which they do not have.
        pictures: pictures that have `label` and not `predicted`.
        errors: those of them that are predicted as `predicted`.
        mean_probability: of `predicted` over all of them; above 0 even where no answer is wrong yet.
        examples: numbers of the pictures with the greatest probability of `predicted`, greatest first.
        probabilities: of `predicted` for each of them.
    """

    label: str
    predicted: str
    pictures: int
    errors: int
    mean_probability: float
    examples: tuple[int, ...]
    probabilities: tuple[float, ...]


def mix_ups(
    probabilities: NDArray[np.float32],
    labels: Sequence[Sequence[str]],
    classes: Sequence[str],
    *,
    multilabel: bool = False,
    count: int = 6,
    examples: int = 8,
) -> tuple[MixUp, ...]:
    """Finds the pairs of classes that are confused most: by errors, then by the mean probability of the wrong class.

    Args:
        probabilities: N x K.
        labels: for each picture the names of its classes: one, or any number with `multilabel`. Pictures without a
            known one are left out.
        classes: K names.
        multilabel: a class is predicted where its probability is at least 0.5, instead of where it is the greatest.
        count: the most pairs; those with a mean probability of 0 are left out.
        examples: pictures for each pair.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    truth = np.zeros(probabilities.shape, bool)
    for row, names in enumerate(labels):
        truth[row, [numbers[name] for name in names if name in numbers]] = True
    if multilabel:
        predicted = probabilities >= _THRESHOLD
    else:
        predicted = np.zeros_like(truth)
        predicted[np.arange(len(truth)), probabilities.argmax(1)] = True
    wrong = np.where(truth, 0, probabilities).astype(np.float64)
    # Pictures of class A (rows) without class B (columns): their number, errors, and probability of B.
    of = truth.astype(np.float64)
    pictures, errors = of.T @ ~truth, of.T @ (predicted & ~truth)
    mean = of.T @ wrong / np.maximum(pictures, 1)
    pairs = [(int(a), int(b)) for a, b in np.argwhere((mean > 0) & (pictures > 0))]
    pairs.sort(key=lambda pair: (-errors[pair], -mean[pair], pair))
    confused: list[MixUp] = []
    for a, b in pairs[:count]:
        rows = np.flatnonzero(truth[:, a] & ~truth[:, b])
        rows = rows[np.argsort(-probabilities[rows, b], kind="stable")][:examples]
        shares = tuple(float(share) for share in probabilities[rows, b])
        amounts = int(pictures[a, b]), int(errors[a, b]), float(mean[a, b])
        confused.append(MixUp(classes[a], classes[b], *amounts, tuple(map(int, rows)), shares))
    return tuple(confused)
