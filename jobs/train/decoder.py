"""Actors of Ray Data that decode pictures into memory. Imports no torch, so an actor starts within a second."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from library.bundle.description import BundleRecord
from library.errors import StriateError
from library.pipeline.inputs import InputPipeline
from library.steps.plugins import Plugin, install
from library.training.in_memory import PackedPictures, decode_rows
from library.training.rows import Part, Rows, read_pictures

#: Training pictures on which two decoders are compared.
_COMPARED = 256


class Decoder:
    """An actor that decodes one part of a shard after another."""

    def __init__(self, rows: Rows, inputs: InputPipeline, fitted: bool) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._rows, self._inputs, self._fitted = rows, inputs, fitted

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decodes the pictures of `row["part"]`."""
        return apply_to_part(row, lambda part: decode_rows(self._rows, part, self._inputs, fitted=self._fitted))


def compare_with_cpu(
    record: str, weights: bytes, rows: Rows, inputs: InputPipeline, used_plugins: Sequence[Plugin]
) -> str:
    """Compares the decoder of `inputs` with the CPU's on the first training pictures, in a process that has a GPU.

    Args:
        record: record of the trained bundle, as JSON.
        weights: content of its weight file.
        rows: training rows.
        inputs: the training's input pipeline.
        used_plugins: the plugins that the recipe uses.

    Returns:
        `TrainedDecoder` as JSON.
    """
    # They import torch, which the decoders of other trainings do without.
    from library.bundle.bundle import Bundle
    from library.bundle.decoder_check import compare_decoders
    from library.bundle.network import SingleNetwork
    from library.imaging import cuda_jpeg

    install(used_plugins)
    parsed = BundleRecord.model_validate_json(record)
    bundle = Bundle(parsed, SingleNetwork(parsed, weights, "auto"))
    shard = next(number for number, count in enumerate(rows.counts.tolist()) if count)
    pictures = read_pictures(rows, (shard, 0, _COMPARED), inputs.columns)
    return compare_decoders(bundle, pictures, inputs.decode, cuda_jpeg.library_version()).model_dump_json()


def apply_to_part(row: dict[str, Any], work: Callable[[Part], PackedPictures]) -> dict[str, Any]:
    """Applies `work` to a row's part. An error becomes text in the result: Ray Data would wrap it in many lines."""
    shard, low, high = (int(value) for value in row["part"])
    try:
        return {"number": row["number"], "pictures": work((shard, low, high)), "error": ""}
    except StriateError as error:
        return {"number": row["number"], "pictures": None, "error": str(error)}


def map_parts(
    actor: type, arguments: Sequence[Any], parts: Sequence[Part], workers: int, *, num_gpus: float = 0
) -> list[PackedPictures]:
    """Returns the results of actors for parts of shards, in the order of the parts.

    Args:
        actor: a class such as `Decoder`.
        arguments: arguments of its constructor.
        parts: parts of shards.
        workers: number of actors.
        num_gpus: GPUs of each actor.

    Raises:
        StriateError: when a part failed.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    tasks = [{"number": number, "part": list(part)} for number, part in enumerate(parts)]
    with DataContext.current(context):
        mapped = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
            actor,
            fn_constructor_args=arguments,
            num_cpus=1,
            num_gpus=num_gpus,
            compute=ActorPoolStrategy(size=min(workers, len(tasks)), max_tasks_in_flight_per_actor=2),
        )
    mapped.set_name("striate train decode")
    results: dict[int, PackedPictures] = {}
    for row in mapped.iter_rows():
        if row["error"]:
            raise StriateError(row["error"])
        results[row["number"]] = row["pictures"]
    return [results[number] for number in range(len(tasks))]
