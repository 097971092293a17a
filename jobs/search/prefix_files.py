"""Files of what slow beginnings of pipelines returned, so that other workers and a resumed search do not repeat them.

They only save time: one that is missing, cut off or does not fit is computed again. No torch.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from library import storage
from library.dataset.manifest import digest_of
from library.errors import StriateError
from library.imaging.picture import Pixels

PREFIXES = "prefixes"
#: Of a file's pixels. Larger sets are computed again by each worker that needs them.
MOST_BYTES = 512 * 2**20
#: Of a file's names and shapes of pictures, at most.
_HEADER_BYTES = 16 * 2**20
#: Of all files of a search.
_MOST_FOLDER_BYTES = 4 * 2**30
#: On two cores of an AMD EPYC 287 MiB of 2,000 pictures took 2.8 s to encode and write to a disk, and 0.6 s to read and
#: decode. Most filters take under 0.5 s for 2,000 small pictures, `denoise` 7 s at 28 px and 68 s at 96 px.
_LEAST_S, _BYTES_PER_S = 0.5, 80 * 2**20


@dataclass(frozen=True)
class PrefixFiles:
    """The files for one set of pictures, below a search's folder: safetensors, a tensor for each picture.

    Attributes:
        folder: URI.
        context: digest of what the pictures and the filters depend on: datasets, recipe, plugins, versions.
        role: which pictures: `train`, `val` or `test`.
        least_s: what took less time to compute is not written.
        bytes_per_s: rate at which files are assumed to be written and read again; slower computing is worth a file.
    """

    folder: str
    context: str
    role: str
    least_s: float = _LEAST_S
    bytes_per_s: float = _BYTES_PER_S

    def names(self) -> frozenset[str]:
        """Returns the names of the files that are there; none where the folder cannot be listed."""
        try:
            return frozenset(file.path for file in storage.list_files(self.folder))
        except StriateError:
            return frozenset()

    def name(self, rows: NDArray[np.int64], steps: str) -> str:
        """Returns the name of a beginning's file, a digest of everything that its pictures depend on.

        Args:
            rows: numbers of the pictures.
            steps: canonical text of the filters.
        """
        which = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
        return f"{digest_of([self.context, self.role, which, steps])[:32]}.safetensors"

    def read(self, name: str, count: int) -> list[Pixels] | None:
        """Returns the pictures of a file; None if it cannot be read or does not hold `count` pictures."""
        try:
            stored = load(storage.read_bytes(storage.join(self.folder, name), MOST_BYTES + _HEADER_BYTES))
            pixels = [stored[str(number)] for number in range(count)]
        except (StriateError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        return pixels if len(stored) == count and all(picture.ndim == 3 for picture in pixels) else None

    def is_worth_a_file(self, seconds: float, size: int) -> bool:
        """Whether pictures of so many bytes took clearly longer to compute than a file takes to write and read."""
        return size <= MOST_BYTES and seconds >= max(self.least_s, size / self.bytes_per_s)

    def write(self, name: str, pixels: Sequence[Pixels]) -> None:
        """Writes a file, whole or not at all; not where it, or all files together, would be too large."""
        size = sum(picture.nbytes for picture in pixels)
        # The results of trainings are needed, and say what is wrong with the folder; this file only saves time. Pixels
        # of a type that safetensors does not have get none.
        with contextlib.suppress(StriateError, SafetensorError, ValueError, KeyError, TypeError):
            stored = sum(file.size for file in storage.list_files(self.folder))
            if size <= MOST_BYTES and stored + size <= _MOST_FOLDER_BYTES:
                data = save({str(number): np.ascontiguousarray(picture) for number, picture in enumerate(pixels)})
                storage.write_bytes(storage.join(self.folder, name), data)


def remove_prefixes(out: str) -> None:
    """Removes all files of a search, and what a killed writer left of them."""
    folder = storage.join(out, PREFIXES)
    storage.remove(file.uri for file in storage.list_files(folder))
    storage.remove_empty_folder(folder)
