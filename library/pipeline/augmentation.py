"""Augmentation of one picture after another, the same for any number of workers.

What becomes of a picture hangs on the seed, the epoch and its key, and on nothing else: not on the order of pictures,
not on threads, not on how many machines work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library.errors import StepError, StriateError, UsageError
from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.randomness import generator
from library.steps.base import Step, Steps, augmented


def parse_augmentation(text: str) -> Pipeline:
    """Read a pipeline of augmentations, with filters among them.

    Raises:
        GrammarError: points at the first mistake, a selector among them.
        UsageError: when nothing in it is random.
    """
    pipeline = Pipeline.parse(text, refuse="selector")
    if all(step.kind == "filter" for step in pipeline.steps):
        raise UsageError(
            f"nothing in '{pipeline}' is random, so all copies would be alike; add an augmentation, such as "
            "rotate(10), or make one copy with `striate filter`"
        )
    return pipeline


@dataclass(frozen=True)
class Augmenter:
    """Runs a pipeline of augmentations and filters over decoded pictures.

    Attributes:
        pipeline: the steps; no selector, and no filter that reads another column than the pixels.
        seed: of all randomness, from 0.

    Raises:
        UsageError: for a step that has no place here.
    """

    pipeline: Pipeline
    seed: int

    def __post_init__(self) -> None:
        for step in _all_steps(self.pipeline.steps):
            if step.kind == "selector":
                raise UsageError(
                    f"'{step.name}' drops pictures, and an augmentation only changes them; select with "
                    "`striate filter` before"
                )
            if step.may_drop():
                raise UsageError(
                    f"'{step}' may drop a picture, and an augmentation only changes them; run it with `striate filter` "
                    "before"
                )
            columns = step.columns()
            if columns:
                raise UsageError(
                    f"'{step.name}' reads the column '{columns[0]}', and an augmentation sees pixels only; run it with "
                    "`striate filter` before"
                )

    def apply(self, pixels: Pixels, epoch: int, key: str) -> Pixels:
        """A picture's variant in one epoch.

        Args:
            pixels: height x width x channels, uint8, uint16 or float32; never written to.
            epoch: or the number of the copy; each gives another variant.
            key: the picture's, unique in its dataset.

        Returns:
            Pixels of the same dtype; the very same array where chance changed nothing.

        Raises:
            BadPicture: when a step cannot take this picture (too small a crop, a hue without colours).
            StepError: when a step's own code fails; names the key and the step.
        """
        rng = generator(self.seed, epoch, key)
        for step in self.pipeline.steps:
            try:
                pixels = augmented(step, pixels, rng)
            except StriateError:
                raise
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                raise StepError(f"step '{step}' failed on picture '{key}' in epoch {epoch}: {problem}") from error
        return pixels


def _all_steps(steps: Sequence[Step]) -> Iterator[Step]:
    """Every step, and those that are parameters of another."""
    for step in steps:
        yield step
        for name in step.__dataclass_fields__:
            value = getattr(step, name)
            if isinstance(value, Steps):
                yield from _all_steps(value.steps)
