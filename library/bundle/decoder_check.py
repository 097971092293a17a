"""Measures how much a decoder differs from the CPU's, in pixels and in a bundle's probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from library.bundle.bundle import Bundle
from library.bundle.description import TrainedDecoder
from library.errors import BadPicture, StriateError
from library.imaging import codec
from library.imaging.picture import Decode, Pixels
from library.pipeline.inputs import InputPipeline


def compare_decoders(
    bundle: Bundle, pictures: Sequence[Mapping[str, Any]], decode: Decode, library: str
) -> TrainedDecoder:
    """Decodes pictures with the CPU's decoder and with another one, and compares pixels and probabilities.

    Args:
        bundle: a single network.
        pictures: encoded pictures as `bytes`, with `key`, `label` and what else the input pipeline needs.
        decode: the other decoder.
        library: name and version of the other decoder.

    Raises:
        StriateError: none of the pictures can be decoded by both, or the decoders return different shapes.
    """
    record = bundle.record
    cpu = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
    other = dataclasses.replace(cpu, decode=decode)
    largest = 0
    prepared: list[tuple[Pixels, Pixels]] = []
    for picture in pictures:
        columns = {name: value for name, value in picture.items() if name != "bytes"}
        data: bytes = picture["bytes"]
        try:
            one, two = codec.decode(data), decode(data, codec.DEFAULT_LIMITS, None)
            pair = cpu.prepare(data, **columns), other.prepare(data, **columns)
        except BadPicture:
            continue
        largest = max(largest, _difference(one, two, columns.get("key", "")))
        prepared.append(pair)
    if not prepared:
        raise StriateError(f"none of {len(pictures)} training pictures can be decoded by both the CPU and {library}")
    ours, theirs = (bundle.probabilities([pair[side] for pair in prepared]) for side in (0, 1))
    return TrainedDecoder(
        name="cuda",
        library=library,
        pictures=len(prepared),
        largest_pixel_difference=largest,
        largest_probability_difference=float(np.abs(ours - theirs).max()),
    )


def _difference(one: Pixels, two: Pixels, key: str) -> int:
    """The largest difference of a sample; only 8-bit JPEGs can differ, as the CPU decodes everything else."""
    if one.shape != two.shape:
        raise StriateError(f"the decoders return different shapes for '{key}': {one.shape} and {two.shape}")
    return int(np.abs(one.astype(np.int32) - two.astype(np.int32)).max()) if one.dtype == np.uint8 else 0
