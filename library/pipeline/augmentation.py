"""Augments decoded pictures, with the same result for any number of workers.

The result depends only on the seed, the epoch and the picture's key, not on the order of pictures, threads or machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from library.errors import StepError, StriateError, UsageError
from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.pipeline.annotations import Followed
from library.randomness import generator
from library.steps.base import augmented, traced, with_nested


def parse_augmentation(text: str) -> Pipeline:
    """Parses a pipeline of augmentations and filters.

    Raises:
        GrammarError: points at the first mistake; a selector is one.
        UsageError: if nothing in it is random.
    """
    pipeline = Pipeline.parse(text, refuse="selector")
    if all(step.kind == "filter" for step in pipeline.steps):
        raise UsageError(
            f"nothing in '{pipeline}' is random, so all copies would be equal; add an augmentation such as "
            "rotate(10), or make one copy with `striate filter`"
        )
    return pipeline


@dataclass(frozen=True)
class Augmenter:
    """Runs a pipeline of augmentations and filters over decoded pictures.

    Attributes:
        pipeline: augmentations and filters; no selectors, and no filters that read other columns than the picture.
        seed: 0 or more.

    Raises:
        UsageError: for a step that is not allowed.
    """

    pipeline: Pipeline
    seed: int

    def __post_init__(self) -> None:
        for step in with_nested(self.pipeline.steps):
            if step.kind == "selector":
                raise UsageError(
                    f"'{step.name}' drops pictures, which an augmentation cannot do; run it with `striate filter` "
                    "before"
                )
            if step.may_drop():
                raise UsageError(
                    f"'{step}' may drop a picture, which an augmentation cannot do; run it with `striate filter` before"
                )
            columns = step.columns()
            if columns:
                raise UsageError(
                    f"'{step.name}' reads the column '{columns[0]}', but an augmentation has pixels only; run it with "
                    "`striate filter` before"
                )

    def apply(self, pixels: Pixels, epoch: int, key: str) -> Pixels:
        """Returns the picture's variant for one epoch.

        Args:
            pixels: height x width x channels, uint8, uint16 or float32; never written to.
            epoch: the epoch, or the number of the copy; each gives another variant.
            key: the picture's key, unique in its dataset.

        Returns:
            Pixels of the same dtype; the very same array if nothing was changed.

        Raises:
            BadPicture: if a step cannot process this picture (too small for a crop, grey for a change of hue).
            StepError: if a step's own code fails; names the step, the key and the epoch.
        """
        return self._run(pixels, epoch, key, None)

    def apply_with(self, pixels: Pixels, epoch: int, key: str, followed: Followed) -> Pixels:
        """Returns the same variant as `apply`, and moves the picture's masks and boxes with it; raises as they do."""
        return self._run(pixels, epoch, key, followed)

    def _run(self, pixels: Pixels, epoch: int, key: str, followed: Followed | None) -> Pixels:
        rng = generator(self.seed, epoch, key)
        for step in self.pipeline.steps:
            try:
                if followed is None:
                    pixels = augmented(step, pixels, rng)
                else:
                    pixels, moves = traced(step, pixels, rng)
                    followed.follow(moves)
            except StriateError:
                raise
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                raise StepError(f"step '{step}' failed on picture '{key}' in epoch {epoch}: {problem}") from error
        return pixels
