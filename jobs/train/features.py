"""The features of a dataset from a frozen backbone, computed once and stored."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.connection.session import Session
from jobs.train.decoder import apply_to_part, map_parts
from library import storage
from library.bundle.description import weights_file
from library.errors import BadPicture, StriateError
from library.imaging.picture import Pixels
from library.models.build import create
from library.models.classifier import autocast, choose_device
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline, stack
from library.recipe import Recipe
from library.steps.plugins import Plugin, install
from library.training.in_memory import PackedPictures, decode_rows
from library.training.rows import Part, Rows, rejected_text
from library.training.sampling import small_parts

_BATCH = 64


def cached_features(
    uri: str,
    rows: Rows,
    inputs: InputPipeline,
    recipe: Recipe,
    session: Session,
    used_plugins: Sequence[Plugin],
    *,
    copies: int | None,
) -> PackedPictures:
    """Returns the features of every picture: read from `uri`, or computed and stored there.

    Args:
        uri: URI of the file; its name must depend on everything that decides the features.
        rows: the dataset's rows.
        inputs: the model's input pipeline.
        recipe: model, weights and seed are used; with `copies` also the augmentation.
        session: the connection to Ray.
        used_plugins: the plugins that the recipe uses.
        copies: number of augmented passes; None for one pass without augmentation.

    Raises:
        StriateError: no picture can be used.
    """
    if storage.exists(uri):
        return _read(uri)
    gpus = session.gpus
    workers = gpus or max(1, session.cpus)
    parts = small_parts(rows, workers)
    workers = min(workers, len(parts))
    threads = max(1, session.cpus // max(1, len(session.node_cpus)) // workers)
    arguments = (rows, inputs, recipe.model_dump_json(), copies, threads, used_plugins)
    data = PackedPictures.concatenate(map_parts(FeatureWorker, arguments, parts, workers, num_gpus=1 if gpus else 0))
    if not len(data):
        raise StriateError(f"no picture of {rows.dataset} can be used: {rejected_text(data.rejected)}")
    _write(uri, data)
    return data


class FeatureWorker:
    """An actor that runs the frozen backbone on one part of a shard after another."""

    def __init__(
        self,
        rows: Rows,
        inputs: InputPipeline,
        recipe: str,
        copies: int | None,
        threads: int,
        used_plugins: Sequence[Plugin],
    ) -> None:
        install(used_plugins)
        torch.set_num_threads(threads)
        self._rows, self._inputs, self._copies = rows, inputs, copies
        self._recipe = Recipe.model_validate_json(recipe)
        self._device = choose_device()
        torch.manual_seed(self._recipe.seed)  # as in the training loop, so that the model is the same
        model = create(
            self._recipe.model,
            num_classes=len(rows.names),
            head=self._recipe.head,
            weights=weights_file(self._recipe.weights),
        )
        self._model = model.to(self._device).to(memory_format=torch.channels_last).eval()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Computes the features of `row["part"]`."""
        return apply_to_part(row, self._features)

    def _features(self, part: Part) -> PackedPictures:
        recipe = self._recipe
        augmenter = Augmenter(Pipeline.parse(recipe.augment), recipe.seed) if self._copies and recipe.augment else None
        data = decode_rows(self._rows, part, self._inputs, fitted=augmenter is None)
        all_features: list[NDArray[Any]] = []
        rows: list[int] = []
        refused: dict[int, str] = {}
        for copy in range(self._copies or 1):
            for first in range(0, len(data), _BATCH):
                pictures = self._pictures(data, range(first, min(first + _BATCH, len(data))), augmenter, copy, refused)
                if pictures:
                    all_features += list(self._of_batch(list(pictures.values())))
                    rows += pictures
        # A picture that several copies cannot use counts once.
        rejected = Counter(data.rejected) + Counter(refused.values())
        return PackedPictures.pack(all_features, data.labels[rows].tolist(), data.keys[rows].tolist(), rejected)

    def _pictures(
        self, data: PackedPictures, rows: range, augmenter: Augmenter | None, copy: int, refused: dict[int, str]
    ) -> dict[int, Pixels]:
        """The pictures of some rows in the model's size; reasons of those that augmentation refuses go to `refused`."""
        pictures: dict[int, Pixels] = {}
        for row in rows:
            pixels: Pixels = data[row]
            try:
                if augmenter is not None:
                    pixels = self._inputs.fitted(augmenter.apply(pixels, copy, str(data.keys[row])))
                pictures[row] = pixels
            except BadPicture as bad:
                refused[row] = bad.reason
        return pictures

    def _of_batch(self, pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        x = torch.from_numpy(stack(pictures)).to(self._device).permute(0, 3, 1, 2)
        with torch.inference_mode(), autocast(self._device, self._recipe.precision):
            return self._model.features(x).float().cpu().numpy()


def _write(uri: str, data: PackedPictures) -> None:
    out = io.BytesIO()
    features = data.flat.reshape(len(data), -1)
    rejected = np.asarray(sorted(data.rejected.elements()), np.str_)
    np.savez(out, features=features, labels=data.labels, keys=data.keys.astype(np.str_), rejected=rejected)
    storage.write_bytes(uri, out.getvalue())


def _read(uri: str) -> PackedPictures:
    with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as stored:
        rejected = Counter(stored["rejected"].tolist())
        features, labels, keys = (stored[name] for name in ("features", "labels", "keys"))
    return PackedPictures.pack(list(features), labels.tolist(), keys.tolist(), rejected)
