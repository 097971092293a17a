"""Confident learning: which labels are probably wrong, from probabilities that never saw them.

The method is that of Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR
2021, https://arxiv.org/abs/1911.00068), written from the paper. The probabilities must be out-of-fold: a classifier
that was trained on a picture has learned its label, wrong or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Probabilities: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
#: How many label errors are expected: by the estimated noise rates, or only those of confident pictures.
Pruning: TypeAlias = Literal["noise_rate", "confident"]


@dataclass(frozen=True)
class LabelErrors:
    """The labels that are probably wrong, most suspicious first.

    Attributes:
        rows: E row numbers.
        suggested: the class that each of them probably has, E ids.
        quality: E scores from 0 (wrong) to 1 (right), ascending.
        joint: K x K, estimated number of pictures by given label (rows) and true class (columns); sums to N.
    """

    rows: NDArray[np.int64]
    suggested: NDArray[np.int64]
    quality: NDArray[np.float64]
    joint: NDArray[np.float64]

    @property
    def share(self) -> float:
        """The estimated share of wrong labels."""
        total = self.joint.sum()
        return 0.0 if not total else float(1 - np.trace(self.joint) / total)


def class_thresholds(labels: NDArray[np.int64], probabilities: Probabilities) -> NDArray[np.float64]:
    """Returns for each class the mean probability of it among the pictures that are labelled so (eq. 2 of the paper).

    A class without a picture has threshold infinity: nothing is ever counted for it.

    Args:
        labels: N class ids.
        probabilities: N x K, out of fold.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, _given(labels, probabilities), minlength=classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def confident_classes(labels: NDArray[np.int64], probabilities: Probabilities) -> NDArray[np.int64]:
    """Returns the class that each picture confidently has, -1 where there is none.

    It is the most probable of the classes whose probability reaches the threshold of that class.
    """
    reached = probabilities >= class_thresholds(labels, probabilities) - 1e-6
    best = np.where(reached, probabilities, -1.0).argmax(1).astype(np.int64)
    return np.where(reached.any(1), best, -1)


def confident_joint(labels: NDArray[np.int64], probabilities: Probabilities) -> NDArray[np.int64]:
    """Returns how many pictures of each label (rows) confidently have each class (columns), K x K (eq. 1)."""
    classes = probabilities.shape[1]
    confident = confident_classes(labels, probabilities)
    counted = confident >= 0
    pairs = labels[counted] * classes + confident[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def calibrated_joint(labels: NDArray[np.int64], probabilities: Probabilities) -> NDArray[np.float64]:
    """Returns the confident joint scaled so that its rows sum to the number of pictures of each label (eq. 3).

    A label without any confident picture counts as right.
    """
    counted = confident_joint(labels, probabilities).astype(np.float64)
    given = np.bincount(labels, minlength=len(counted)).astype(np.float64)
    rows = counted.sum(1, keepdims=True)
    scaled = counted / np.maximum(rows, 1) * given[:, None]
    return np.where(rows > 0, scaled, np.diag(given))


def find_label_errors(
    labels: NDArray[np.int64],
    probabilities: Probabilities,
    *,
    pruning: Pruning = "noise_rate",
) -> LabelErrors:
    """Finds the labels that are probably wrong. A label that is the most probable class of its picture never counts.

    Args:
        labels: N class ids, 0 to K - 1.
        probabilities: N x K, out of fold; each row sums to 1.
        pruning: `noise_rate` takes, for each label and each other class, as many pictures as the calibrated joint
            says, those whose probability of the class exceeds that of the label most (the paper's method 4);
            `confident` takes the pictures that confidently have another class (method 2), which is more cautious.

    Raises:
        ValueError: the shapes do not match, or a label is no column.
    """
    if probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise ValueError(f"{len(labels)} labels and probabilities of shape {probabilities.shape} do not match")
    if len(labels) and not (labels.min() >= 0 and labels.max() < probabilities.shape[1]):
        raise ValueError(f"labels from {labels.min()} to {labels.max()} are not columns of {probabilities.shape}")
    joint = calibrated_joint(labels, probabilities)
    best = probabilities.argmax(1).astype(np.int64)
    if pruning == "noise_rate":
        suspicious, suggested = _by_noise_rate(labels, probabilities, joint), best
    else:
        suggested = confident_classes(labels, probabilities)
        suspicious = (suggested >= 0) & (suggested != labels)
    rows = np.flatnonzero(suspicious & (best != labels))
    quality = label_quality(labels[rows], probabilities[rows])
    order = np.argsort(quality, kind="stable")
    return LabelErrors(rows[order], suggested[rows][order], quality[order], joint)


def _by_noise_rate(
    labels: NDArray[np.int64], probabilities: Probabilities, joint: NDArray[np.float64]
) -> NDArray[np.bool_]:
    suspicious = np.zeros(len(labels), np.bool_)
    for label, row in enumerate(joint):
        of_label = np.flatnonzero(labels == label)
        margins = probabilities[of_label] - probabilities[of_label, label][:, None]
        for other in np.flatnonzero(np.round(row)):
            if other != label:
                order = np.argsort(-margins[:, other], kind="stable")
                suspicious[of_label[order[: round(row[other])]]] = True
    return suspicious


def label_quality(labels: NDArray[np.int64], probabilities: Probabilities) -> NDArray[np.float64]:
    """Returns how well each label agrees with the probabilities: its distance to the best other one, from 0 to 1."""
    given = _given(labels, probabilities)
    others = np.array(probabilities, np.float64)
    others[np.arange(len(labels)), labels] = -np.inf
    return (given - others.max(1, initial=-np.inf) + 1) / 2 if len(labels) else given


def _given(labels: NDArray[np.int64], probabilities: Probabilities) -> NDArray[np.float64]:
    return probabilities[np.arange(len(labels)), labels].astype(np.float64)
