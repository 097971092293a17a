"""Batches of pictures: what a training step takes, and the interface of what supplies them. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from library.training.augmenting.choice import AugmentPlace
from library.training.augmenting.operations import UndonePictures
from library.training.rows import Rows

if TYPE_CHECKING:
    import torch  # takes seconds, and the driver and decoders import this module

#: Marks a usable picture in an array of unusable pictures' class ids.
USED = -1


class PictureRows(Protocol):
    """Pictures of one shape, or features, of which rows are taken: an array, or pictures in the memory of a GPU."""

    def __getitem__(self, rows: NDArray[np.int64] | slice, /) -> NDArray[Any] | torch.Tensor:
        """The pictures of some rows, as in `Batch.pictures`."""
        ...


@dataclass(frozen=True)
class Batch:
    """One worker's part of a batch.

    Attributes:
        pictures: n x height x width x channels, as stored; or n x features where the backbone's are cached. A tensor
            if the dataset's pictures are in the memory of a GPU. Or pictures that the device has yet to augment.
        labels: n class ids.
        keys: keys of the pictures.
        size: pictures of the whole batch, over all workers.
        rejected: how many of the n replace pictures that could not be used.
        on_cpu: how many of the n were augmented on the CPU, although the device augments others.
    """

    pictures: NDArray[Any] | torch.Tensor | UndonePictures
    labels: NDArray[np.int64]
    keys: Sequence[str]
    size: int
    rejected: int = 0
    on_cpu: int = 0


class UnusablePictures:
    """Counts the pictures of a dataset that could not be used in the current epoch.

    Args:
        rows: the dataset's rows.

    Attributes:
        by_class: counts by class id.
        by_reason: counts by reason.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.by_class = np.zeros(len(rows.classes), np.int64)
        self.by_reason: Counter[str] = Counter()

    def clear(self) -> None:
        """Resets all counts to zero."""
        self.by_class[:] = 0
        self.by_reason.clear()

    def add(self, class_ids: NDArray[np.int64], reasons: Sequence[str]) -> None:
        """Counts pictures.

        Args:
            class_ids: class id of each unusable picture, `USED` for the others.
            reasons: reason slug of each unusable picture, empty for the others.
        """
        self.by_class += np.bincount(class_ids[class_ids != USED], minlength=len(self.by_class))
        self.by_reason.update(reason for reason in reasons if reason)


class BatchLoader(Protocol):
    """Supplies one worker with its part of every training and validation batch.

    It is started once. Then `training` and `validation` are called in turn, epoch after epoch, beginning with the rest
    of the current epoch. While one of them is consumed, the loader prepares what comes next.

    Attributes:
        steps_per_epoch: batches of an epoch.
        left_out: training pictures that could not be used before the training; 0 for a stream, which decodes later.
        unusable: pictures that could not be used in the current epoch, one entry for each dataset; empty if the
            loader has decoded everything before it starts.
        augmentation: where training pictures are augmented; None where they are not.
    """

    steps_per_epoch: int
    left_out: int
    augmentation: AugmentPlace | None

    @property
    def unusable(self) -> Sequence[UnusablePictures]:
        """Pictures that could not be used in the current epoch, by dataset."""
        ...

    def start(self, epoch: int, first_step: int, steps: int) -> None:
        """Starts at step `first_step` of `epoch` (both from 0), for `steps` steps in all."""
        ...

    def training(self) -> Iterator[Batch]:
        """Yields this worker's part of each remaining batch of the current epoch."""
        ...

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """Yields this worker's part of the validation pictures, in batches of at most `batch_size`."""
        ...
