"""Learned kernels as filters: texts for `striate filter --steps`, and a space for `striate search --space`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.choosing.learned_filters.references import Match
from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.recipe.yaml_text import dump_yaml
from library.steps.arrays import white

#: What a filter adds to its sums, as a fraction of white: no answer is grey, and both signs are visible.
OFFSET = 0.5
#: The share of the answers to training pictures that lie within half of white, so that few are cut off.
_WITHIN = 0.999
_DIGITS = 4


@dataclass(frozen=True)
class LearnedKernel:
    """A kernel of a trained network's first layer.

    Attributes:
        weights: channels x size x size, scaled so that its answers fit into half of white.
        match: the kernel of the textbook that it resembles most.
        filters: the text of the filter, which returns one channel.
        candidate: the same for a search: of pictures in colour three channels, as recipes expect.
    """

    weights: NDArray[np.float64]
    match: Match
    filters: str
    candidate: str


def scaled_to_pictures(kernels: NDArray[np.floating], pictures: Sequence[Pixels]) -> NDArray[np.float64]:
    """Returns kernels whose answers to these pictures lie within half of white, but for one in a thousand.

    Args:
        kernels: count x channels x size x size.
        pictures: height x width x channels each, of one dtype; at least one.
    """
    scaled = np.asarray(kernels, np.float64).copy()
    values = [picture.astype(np.float32) / np.float32(white(picture.dtype)) for picture in pictures]
    for number, kernel in enumerate(scaled):
        pipeline = Pipeline.parse(f"convolve({_listed(kernel)})")
        answers = np.concatenate([np.abs(pipeline.apply(picture)).ravel() for picture in values])
        largest = float(np.quantile(answers, _WITHIN))
        scaled[number] = kernel * (0.5 / largest) if largest else kernel
    return scaled


def kernel_filters(weights: NDArray[np.float64], first: str) -> tuple[str, str]:
    """Returns the text of a kernel's filter, and its text for a search.

    Args:
        weights: channels x size x size.
        first: steps that come before the kernel, such as `grayscale`; empty for none.
    """
    # A kernel of one plane also filters each channel of a picture in colour.
    own = f"convolve({_listed(weights if len(weights) > 1 else weights[0])}, offset={OFFSET})"
    whole = f"{first} | {own}" if first else own
    in_colour = len(weights) == 3 or bool(first)
    return whole, f"{whole} | rgb" if in_colour else whole


def filter_list(kernels: Sequence[LearnedKernel]) -> str:
    """Returns one filter a line."""
    return "".join(f"{kernel.filters}\n" for kernel in kernels)


def search_space(kernels: Sequence[LearnedKernel], pipeline: str = "") -> str:
    """Returns the YAML of a space that holds the default filters and these.

    Args:
        kernels: learned kernels.
        pipeline: one more candidate; empty for none.
    """
    return dump_yaml(
        {"filters": ["default", *(kernel.candidate for kernel in kernels), *([pipeline] if pipeline else [])]}
    )


def _listed(weights: NDArray[np.float64]) -> str:
    """The weights as lists, each with four significant digits."""
    if weights.ndim:
        return f"[{', '.join(_listed(part) for part in weights)}]"
    return np.format_float_positional(float(weights), precision=_DIGITS, fractional=False, trim="-")
