"""Does leaving pictures out help? The sets that are compared, and what the comparison says.

Kept pictures alone say little: fewer pictures are a smaller training set, whatever they are. So each seed also trains
on random sets of the same sizes, and the dropped pictures are compared with a random set of their size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.evaluation.paired_tests import ALPHA, PairedDifference, compare_pairs, compare_replicates, corrected

#: `random_kept` and `random_dropped` are drawn anew for each seed, as many pictures as are kept or dropped.
SetName: TypeAlias = Literal["all", "kept", "random_kept", "dropped", "random_dropped"]

#: The second set of each pair minus the first, and what that asks.
QUESTIONS: Mapping[tuple[SetName, SetName], str] = {
    ("all", "kept"): "leaving them out",
    ("random_kept", "kept"): "leaving out these rather than as many random ones",
    ("random_dropped", "dropped"): "training on them rather than on as many random ones",
}
#: What the seeds are: trainings that are independent of one another, or replicates of a bootstrap of one data set.
Seeds: TypeAlias = Literal["repetitions", "replicates"]
#: What the intervals cover.
COVERS: Mapping[Seeds, str] = {
    "repetitions": "other seeds, with the same training and validation pictures",
    "replicates": "other training and validation pictures of the same kind; more seeds do not make them narrower",
}
#: Fewer seeds say nothing about chance: 5 of one sign have p = 0.0625.
FEWEST_SEEDS = 5


def sets_of(kept: NDArray[np.bool_], seed: int) -> Mapping[SetName, NDArray[np.int64]]:
    """Returns the training sets of one seed, as row numbers in rising order.

    Args:
        kept: for each picture, whether the selectors keep it; some do, and some do not.
        seed: decides the random sets.
    """
    order = np.random.default_rng([seed, len(kept)]).permutation(len(kept))
    size = int(kept.sum())
    return {
        "all": np.arange(len(kept)),
        "kept": np.flatnonzero(kept),
        "random_kept": np.sort(order[:size]),
        "dropped": np.flatnonzero(~kept),
        "random_dropped": np.sort(order[size:]),
    }


def weights_of(pictures: int, seed: int, *, of: Literal["train", "val"] = "train") -> NDArray[np.float64]:
    """Returns the weights of a Bayesian bootstrap (Rubin 1981), one for each picture, the same in every set of a seed.

    A linear head has one solution, so seeds alone would give the same number again and again. Weighted pictures stand
    for another sample of the same kind, which is what a user's next data will be. Training and validation pictures are
    weighted independently.
    """
    return np.random.default_rng([seed, pictures, 1 if of == "train" else 2]).standard_exponential(pictures)


@dataclass(frozen=True)
class Answer:
    """One comparison.

    Attributes:
        first: name of the set that the second one is compared with.
        second: of the other set.
        question: what is asked.
        difference: accuracy of the second minus that of the first, as fractions.
    """

    first: SetName
    second: SetName
    question: str
    difference: PairedDifference

    def sentence(self) -> str:
        """Returns the answer in words, in percentage points."""
        difference = self.difference
        low, high = (100 * end for end in difference.interval)
        text = f"{self.question}: {100 * difference.mean:+.2f} points (95% interval {low:+.2f} to {high:+.2f}), "
        text += f"p = {difference.adjusted_p:.3g}"
        if difference.verdict == "equivalent":
            return f"{text}: no difference larger than {100 * (difference.margin or 0):g} points"
        if difference.verdict == "undecided":
            short, floor = "", difference.smallest_p
            if floor * len(QUESTIONS) >= ALPHA:
                short = f"; p of {len(difference.differences)} seeds is never below {floor:.3g}, before correction"
            return f"{text}: undecided{short}"
        return f"{text}: {difference.verdict}"


def answers(accuracies: Mapping[SetName, Sequence[float]], margin: float, seeds: Seeds) -> list[Answer]:
    """Compares the sets that were measured; p-values are corrected for the number of questions (Holm).

    Args:
        accuracies: of each set, one for each seed, in the same order of seeds.
        margin: differences up to this fraction do not matter.
        seeds: what the seeds are; decides what the intervals cover.
    """
    compare = compare_pairs if seeds == "repetitions" else compare_replicates
    asked = questions_of(accuracies)
    compared = corrected([compare(accuracies[first], accuracies[second], margin=margin) for first, second in asked])
    return [
        Answer(first, second, QUESTIONS[first, second], difference)
        for (first, second), difference in zip(asked, compared, strict=True)
    ]


def questions_of(names: Collection[SetName]) -> list[tuple[SetName, SetName]]:
    """Returns the pairs of sets that can be compared, where only these sets are trained on."""
    return [pair for pair in QUESTIONS if all(name in names for name in pair)]
