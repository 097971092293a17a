"""A linear classifier on features (multinomial logistic regression), and out-of-fold probabilities from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

#: Weight of half the squared coefficients beside the mean loss, for standardised features.
PENALTY = 1e-2
_ITERATIONS = 60
_TOLERANCE = 1e-5
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class LinearHead:
    """A fitted classifier.

    Attributes:
        mean: of the features that it was fitted on, D values.
        scale: their standard deviation, 1 where it is 0.
        weights: D x K.
        bias: K values.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def fit(
        cls,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        classes: int,
        *,
        sample_weights: NDArray[np.float64] | None = None,
        penalty: float = PENALTY,
        overwrite: bool = False,
    ) -> LinearHead:
        """Fits the classifier by L-BFGS from zero; a class without a picture gets a small probability.

        Args:
            features: N x D.
            labels: N class ids.
            classes: K.
            sample_weights: of the pictures; None for equal ones.
            penalty: larger values give smaller coefficients.
            overwrite: `features` may be overwritten, so that they are in memory only once.
        """
        mean = features.mean(0, dtype=np.float64).astype(np.float32)
        inputs = np.subtract(features, mean, out=features if overwrite else None)
        scale = np.sqrt(_sum_of_squares(inputs) / len(inputs)).astype(np.float32)
        scale[scale == 0] = 1
        inputs /= scale
        weights = np.ones(len(labels)) if sample_weights is None else np.asarray(sample_weights, np.float64)
        weights = (weights / weights.sum()).astype(np.float32)
        rows, size = np.arange(len(labels)), inputs.shape[1] * classes

        def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            coefficients = parameters[:size].reshape(-1, classes).astype(np.float32)
            logits = inputs @ coefficients + parameters[size:].astype(np.float32)
            logits -= logits.max(1, keepdims=True)
            given = logits[rows, labels]
            errors = np.exp(logits, out=logits)
            sums = errors.sum(1)
            value = float(weights @ (np.log(sums) - given))
            errors /= sums[:, None]
            errors[rows, labels] -= 1
            errors *= weights[:, None]
            gradient = inputs.T @ errors + np.float32(penalty) * coefficients
            value += penalty / 2 * float(np.square(parameters[:size]).sum())
            return value, np.concatenate([gradient.reshape(-1), errors.sum(0)]).astype(np.float64)

        fitted: Any = optimize.minimize(
            loss,
            np.zeros(size + classes),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _ITERATIONS, "gtol": _TOLERANCE},
        )
        solution = np.asarray(fitted.x, np.float32)
        return cls(mean, scale, solution[:size].reshape(-1, classes), solution[size:])

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns N x K probabilities; each row sums to 1."""
        result = np.empty((len(features), len(self.bias)), np.float32)
        for rows in _blocks(len(features)):
            logits = ((features[rows] - self.mean) / self.scale) @ self.weights + self.bias
            exponents = np.exp(logits - logits.max(1, keepdims=True))
            result[rows] = exponents / exponents.sum(1, keepdims=True)
        return result


def _sum_of_squares(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the sum of the squares of each column, without a copy of all of them in float64."""
    sums = np.zeros(values.shape[1])
    for rows in _blocks(len(values)):
        sums += np.square(values[rows], dtype=np.float64).sum(0)
    return sums


def _blocks(count: int) -> Iterator[slice]:
    for first in range(0, count, _BLOCK_ROWS):
        yield slice(first, first + _BLOCK_ROWS)


def out_of_fold(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    folds: NDArray[np.int64],
    *,
    only: Iterable[int] | None = None,
) -> NDArray[np.float32]:
    """Returns the probabilities of each picture from a classifier that was fitted without its fold.

    Args:
        features: N x D.
        labels: N class ids.
        classes: K.
        folds: the fold of each picture, from 0; pictures that belong together are in one fold.
        only: the folds that are computed; rows of others are zero. None for all.
    """
    result = np.zeros((len(labels), classes), np.float32)
    for fold in np.unique(folds).tolist() if only is None else only:
        held = folds == fold
        head = LinearHead.fit(features[~held], labels[~held], classes, overwrite=True)
        result[held] = head.probabilities(features[held])
    return result
