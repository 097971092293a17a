"""What many pictures look like: cheap measures of each, counted in histograms.

The measures are the same wherever pictures are counted, at ingest and at serving, and every histogram has the same bins
everywhere, so that histograms add up and compare (`serve.replica.drift`). Nothing of a picture is kept.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import cv2
import numpy as np

from library.dataset.manifest import find_manifest
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.steps.arrays import white
from library.steps.colour import Grayscale

#: Changes with what a measure means or where bins lie: histograms of two versions cannot be compared.
VERSION = 1

#: By measure, where one bin ends and the next begins; an edge belongs to the bin above it. The first bin and the last
#: are open: they take whatever lies outside.
#:
#: brightness: mean grey, 0 black to 1 white, bins of 0.05.
#: contrast: standard deviation of grey (RMS contrast, Peli 1990), 0 to 0.5, bins of 0.025.
#: sharpness: variance of the Laplacian (Pech-Pacheco et al. 2000) of grey in 0 to 255; a bin an octave.
#: width, height: pixels, two bins an octave, from 16 to 16384.
EDGES: Mapping[str, Sequence[float]] = {
    "brightness": [number / 20 for number in range(1, 20)],
    "contrast": [number / 40 for number in range(1, 20)],
    "sharpness": [2.0**number for number in range(15)],
    "width": [2 ** (number / 2) for number in range(8, 29)],
    "height": [2 ** (number / 2) for number in range(8, 29)],
}
#: The mix of classes: of labels in a dataset, of answers at serving.
CLASS = "class"

#: Longer side of what grey is measured on. Contrast and sharpness depend on scale: two sizes of one photo should agree.
_SIDE_PX = 256
_GREY = Grayscale()


def measures(pixels: Pixels) -> dict[str, float]:
    """Brightness, contrast, sharpness, width and height of a decoded picture, upright and before any step.

    Grey is measured on the picture reduced to 256 pixels at its longer side; a smaller one is taken as it is. A picture
    with values that are no numbers has a width and a height only.

    Args:
        pixels: height x width x channels; uint8, uint16 or float32.
    """
    height, width = pixels.shape[:2]
    found = {"width": float(width), "height": float(height)}
    grey = np.asarray(_GREY(pixels))[:, :, 0]
    scale = _SIDE_PX / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))
    top = white(grey.dtype)
    mean, deviation = (float(value[0, 0]) / top for value in cv2.meanStdDev(grey))
    laplacian = cv2.Laplacian(grey, cv2.CV_32F)
    spread = float(cv2.meanStdDev(laplacian)[1][0, 0]) * 255 / top
    if math.isfinite(mean + deviation + spread):
        found |= {"brightness": mean, "contrast": deviation, "sharpness": spread**2}
    return found


class Histograms:
    """Pictures counted by measure and by class, in bins that never change; its size does not grow with their number."""

    def __init__(self) -> None:
        self.bins: dict[str, list[int]] = {}
        self.classes: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Count one picture's values, by measure; raises KeyError for a measure that there is not."""
        for name, value in values.items():
            edges = EDGES[name]
            counts = self.bins.get(name)
            if counts is None:
                counts = self.bins[name] = [0] * (len(edges) + 1)
            counts[bisect_right(edges, value)] += 1

    def add_pictures(self, encoded: Iterable[bytes]) -> None:
        """Decode and measure stored pictures; a damaged one, which nothing before had to decode, is passed by."""
        for data in encoded:
            with suppress(BadPicture):
                self.add(measures(codec.decode(data)))

    def add_class(self, name: str, count: int = 1) -> None:
        """Count a class."""
        self.classes[name] = self.classes.get(name, 0) + count

    def merge(self, other: Histograms) -> None:
        """Add another's counts to these."""
        for name, counts in other.bins.items():
            mine = self.bins.get(name, [0] * len(counts))
            self.bins[name] = [a + b for a, b in zip(mine, counts, strict=True)]
        for name, count in other.classes.items():
            self.add_class(name, count)

    def counts(self, measure: str) -> dict[str, int]:
        """By bin (its number, or the class's name), those in use only."""
        if measure == CLASS:
            return {name: count for name, count in self.classes.items() if count}
        return {str(number): count for number, count in enumerate(self.bins.get(measure, ())) if count}

    def median(self, measure: str) -> tuple[float, float] | None:
        """Where the bin begins and ends that holds the middle picture; None where nothing was counted."""
        counts = self.bins.get(measure)
        if not counts or not sum(counts):
            return None
        middle = next(n for n, reached in enumerate(accumulate(counts)) if 2 * reached >= sum(counts))
        edges = (0.0, *EDGES[measure], math.inf)
        return edges[middle], edges[middle + 1]

    def medians(self) -> str:
        """A line with the bin of each measure's middle picture: `medians: brightness 0.4 to 0.45, ...`."""
        middles = {name: middle for name in EDGES if (middle := self.median(name)) is not None}
        return "medians: " + ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in middles.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the same for the same counts however they came together."""
        found: dict[str, Any] = {"version": VERSION}
        found["bins"] = {name: list(self.bins[name]) for name in EDGES if name in self.bins}
        if self.classes:
            found["classes"] = dict(sorted(self.classes.items()))
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histograms:
        """What `to_dict` gave.

        Raises:
            StriateError: it was made by a version whose bins are others, or is damaged.
        """
        if data.get("version") != VERSION:
            raise StriateError(
                f"histograms of version {data.get('version')} cannot be compared with those of version {VERSION}; "
                "measure the dataset again with `striate ingest --measure`"
            )
        made = cls()
        try:
            for name, counts in data["bins"].items():
                if len(counts) != len(EDGES[name]) + 1:
                    raise ValueError(f"{len(counts)} bins of '{name}'")
                made.bins[name] = [int(count) for count in counts]
            for name, count in data.get("classes", {}).items():
                made.add_class(name, int(count))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StriateError(f"histograms are damaged: {type(error).__name__}: {error}") from None
        return made

    @classmethod
    def total(cls, parts: Iterable[Histograms]) -> Histograms:
        """The sum of many."""
        made = cls()
        for part in parts:
            made.merge(part)
        return made


def of_dataset(dataset: str, digest: str) -> dict[str, Any] | None:
    """What the pictures of a dataset look like, for a bundle's provenance: so drift is seen without the dataset.

    Args:
        dataset: its URI.
        digest: that its manifest should have.

    Returns:
        None where ingest did not measure it, or where it is another dataset by now.
    """
    manifest = find_manifest(dataset)
    return manifest.histograms if manifest is not None and manifest.digest == digest else None
