"""Draws an augmentation for the pictures of a batch. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.steps.augmentations.crops import RandomResizedCrop
from library.training.augmenting.draft import Draft
from library.training.augmenting.forms import draw_steps
from library.training.augmenting.operations import Drawn, RaggedPictures, UndonePictures
from library.training.augmenting.streams import RandomStreams


@dataclass(frozen=True)
class BatchDrawer:
    """Draws what `augmenter` and then `inputs.fitted` do to each picture of a batch.

    Attributes:
        augmenter: its pipeline has only steps with a batched form.
        inputs: the model's input pipeline; so does its `fit`.
    """

    augmenter: Augmenter
    inputs: InputPipeline

    def draw(self, shapes: NDArray[Any], epoch: int, keys: Sequence[str]) -> Drawn:
        """Draws the parameters of a batch.

        Args:
            shapes: n x 3; height, width and channels of each picture, which is uint8.
            epoch: from 0.
            keys: n keys; each decides what is drawn for its picture.
        """
        draft = Draft(RandomStreams.of_pictures(self.augmenter.seed, epoch, keys), shapes)
        draw_steps(self.augmenter.pipeline.steps, draft, draft.rows)
        self._fit(draft)
        return draft.drawn()

    @property
    def _cuts(self) -> bool:
        """Whether of any picture only a box is used."""
        steps = self.augmenter.pipeline.steps
        return bool(steps) and isinstance(steps[0], RandomResizedCrop)

    def packed(
        self, pictures: Sequence[NDArray[np.uint8]], shapes: NDArray[Any], epoch: int, keys: Sequence[str]
    ) -> RaggedPictures:
        """Packs usable pictures for `undone`, each cut to its box where the augmentation begins with one."""
        return RaggedPictures.pack(pictures, self.draw(shapes, epoch, keys) if self._cuts else None)

    def undone(self, pictures: RaggedPictures, epoch: int, keys: Sequence[str]) -> UndonePictures:
        """Draws for pictures that are all usable, and that may have been cut to the boxes that are drawn."""
        drawn = self.draw(pictures.whole, epoch, keys)
        are_cut = bool((pictures.whole != pictures.shapes).any())
        return UndonePictures(pictures, drawn.on_boxes() if are_cut else drawn)

    def _fit(self, draft: Draft) -> None:
        """Adds the steps that give each picture the model's size."""
        size = np.asarray(self.inputs.size)
        rows = draft.rows
        draw_steps(self.inputs.fit.steps, draft, rows[(draft.shapes[rows, :2] != size).any(axis=1)])
        for row in draft.rows.tolist():
            try:
                self.inputs.check_shape(tuple(draft.shapes[row].tolist()))
            except BadPicture as bad:
                draft.reject(np.asarray([row]), lambda row, bad=bad: bad)
