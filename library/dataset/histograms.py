"""Histograms of what pictures look like: brightness, contrast, sharpness, size and class.

Ingest and serving use the same measures and the same bins, so that histograms can be added and compared
(`serve.replica.drift`). No picture can be restored from them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

from library.dataset.manifest import find_manifest
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.steps import scores

#: Changes when a measure or its bins change: histograms of two versions cannot be compared.
VERSION = 1

#: The edges between bins, by measure; an edge belongs to the bin above it. The first and the last bin are unbounded.
#:
#: brightness: mean grey, 0 (black) to 1 (white), bins of 0.05.
#: contrast: standard deviation of grey (RMS contrast, Peli 1990), 0 to 0.5, bins of 0.025.
#: sharpness: variance of the Laplacian (Pech-Pacheco et al. 2000) of grey in 0 to 255, one bin per octave.
#: width, height: pixels, 16 to 16384, two bins per octave.
EDGES: Mapping[str, Sequence[float]] = {
    "brightness": [number / 20 for number in range(1, 20)],
    "contrast": [number / 40 for number in range(1, 20)],
    "sharpness": [2.0**number for number in range(15)],
    "width": [2 ** (number / 2) for number in range(8, 29)],
    "height": [2 ** (number / 2) for number in range(8, 29)],
}
#: Name of the histogram of classes: of the labels in a dataset, of the predictions at serving.
CLASS = "class"


def measures(pixels: Pixels) -> dict[str, float]:
    """Measures brightness, contrast, sharpness, width and height of a decoded picture, upright and before any step.

    Grey is measured on the picture reduced to 256 pixels at its longer side, as contrast and sharpness depend on scale;
    a smaller one is not enlarged. A picture
    with values that are not finite has a width and a height only.

    Args:
        pixels: height x width x channels; uint8, uint16 or float32.

    Returns:
        Values by the names of `EDGES`, in the units given there.
    """
    height, width = pixels.shape[:2]
    values = {"width": float(width), "height": float(height)}
    grey = scores.within(scores.grey(pixels))
    with suppress(BadPicture):
        values |= {
            "brightness": scores.brightness(grey),
            "contrast": scores.contrast(grey),
            "sharpness": scores.sharpness(grey),
        }
    return values


class Histograms:
    """Counts pictures by measure and by class, in fixed bins; its size does not depend on the number of pictures."""

    def __init__(self) -> None:
        self.bins: dict[str, list[int]] = {}
        self.classes: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Counts one picture's values by measure; raises KeyError for an unknown measure."""
        for name, value in values.items():
            edges = EDGES[name]
            counts = self.bins.get(name)
            if counts is None:
                counts = self.bins[name] = [0] * (len(edges) + 1)
            counts[bisect_right(edges, value)] += 1

    def add_pictures(self, encoded: Iterable[bytes]) -> None:
        """Decodes and measures encoded pictures; a damaged one is skipped."""
        for data in encoded:
            with suppress(BadPicture):
                self.add(measures(codec.decode(data)))

    def add_class(self, name: str, count: int = 1) -> None:
        """Counts a class."""
        self.classes[name] = self.classes.get(name, 0) + count

    def merge(self, other: Histograms) -> None:
        """Adds another's counts to these."""
        for name, counts in other.bins.items():
            own = self.bins.get(name, [0] * len(counts))
            self.bins[name] = [a + b for a, b in zip(own, counts, strict=True)]
        for name, count in other.classes.items():
            self.add_class(name, count)

    def counts(self, measure: str) -> dict[str, int]:
        """Returns the counts above 0 by bin: its number, or the name of the class."""
        if measure == CLASS:
            return {name: count for name, count in self.classes.items() if count}
        return {str(number): count for number, count in enumerate(self.bins.get(measure, ())) if count}

    def median(self, measure: str) -> tuple[float, float] | None:
        """Returns both edges of the bin that holds the median picture; None where nothing was counted."""
        counts = self.bins.get(measure)
        if not counts or not sum(counts):
            return None
        middle = next(n for n, reached in enumerate(accumulate(counts)) if 2 * reached >= sum(counts))
        edges = (0.0, *EDGES[measure], math.inf)
        return edges[middle], edges[middle + 1]

    def medians(self) -> str:
        """Returns a line with the median bin of each measure: `medians: brightness 0.4 to 0.45, ...`."""
        medians = {name: median for name in EDGES if (median := self.median(name)) is not None}
        return "medians: " + ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in medians.items())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data; equal counts give equal data, in whatever order they were added."""
        data: dict[str, Any] = {"version": VERSION}
        data["bins"] = {name: list(self.bins[name]) for name in EDGES if name in self.bins}
        if self.classes:
            data["classes"] = dict(sorted(self.classes.items()))
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histograms:
        """Reads the data that `to_dict` returns.

        Raises:
            StriateError: the data is damaged, or a version with other bins wrote it.
        """
        if data.get("version") != VERSION:
            raise StriateError(
                f"histograms of version {data.get('version')} cannot be compared with those of version {VERSION}; "
                "measure the dataset again with `striate ingest --measure`"
            )
        histograms = cls()
        try:
            for name, counts in data["bins"].items():
                if len(counts) != len(EDGES[name]) + 1:
                    raise ValueError(f"{len(counts)} bins of '{name}'")
                histograms.bins[name] = [int(count) for count in counts]
            for name, count in data.get("classes", {}).items():
                histograms.add_class(name, int(count))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StriateError(f"histograms are damaged: {type(error).__name__}: {error}") from None
        return histograms

    @classmethod
    def total(cls, parts: Iterable[Histograms]) -> Histograms:
        """Returns the sum of `parts`."""
        histograms = cls()
        for part in parts:
            histograms.merge(part)
        return histograms


def of_dataset(dataset: str, digest: str) -> dict[str, Any] | None:
    """Returns the histograms of a dataset for a bundle's provenance, so that drift can be measured without the dataset.

    Args:
        dataset: its URI.
        digest: the digest that its manifest should have.

    Returns:
        The data of `Histograms.to_dict`; None where ingest did not measure the pictures, or the dataset has changed.
    """
    manifest = find_manifest(dataset)
    return manifest.histograms if manifest is not None and manifest.digest == digest else None
