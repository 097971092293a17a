"""What a training step is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """One worker's part of a batch.

    Attributes:
        pictures: n x height x width x channels, as stored; or n x features where the backbone's are cached.
        labels: n class ids.
        keys: of the pictures.
        size: of the whole batch, over all workers.
    """

    pictures: NDArray[Any]
    labels: NDArray[np.int64]
    keys: Sequence[str]
    size: int
