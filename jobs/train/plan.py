"""The plan of a training: what is trained on what, checked before Ray is started. Imports no Ray and no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.train.run_folder import LOGS, RunRecord, is_finished, training_versions
from jobs.train.scaling import Scaling
from jobs.train.worker_task import TrainTask
from library import storage
from library.dataset.manifest import load_manifest
from library.errors import BadPicture, UsageError
from library.grammar import nearest
from library.models import info, parse_call
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.steps import plugins
from library.training.augmenting.choice import describe_places
from library.training.in_memory import decode_rows
from library.training.rows import (
    Rows,
    check_columns,
    check_same_classes,
    read_labelled_rows,
    read_pictures,
    read_rows,
    rejected_text,
    split_rows,
)
from library.training.sampling import smallest_part

_PROBED_ROWS = 32


@dataclass(frozen=True)
class TrainPlan:
    """The plan of a training.

    Attributes:
        recipe: the recipe as the user wrote it; its digest identifies the training, and the bundle records it.
        located: the recipe with absolute paths, for workers, whose current folder is another.
        out: URI of the bundle; logs and checkpoints go there too.
        train: training rows.
        val: validation rows; None for no validation.
        inputs: the model's input pipeline.
        datasets: digests of the datasets, by role (`train`, `val`).
        in_memory: whether the decoded pictures fit into memory, or features are cached; else pictures are streamed.
        decoded_bytes: mean size of a decoded training picture, as the first ones have it.
        decoded_dtype: type of its samples.
        overwrite: whether files of another training in `out` are replaced.
        finished: whether this training has finished before.
    """

    recipe: Recipe
    located: Recipe
    out: str
    train: Rows
    val: Rows | None
    inputs: InputPipeline
    datasets: dict[str, str]
    in_memory: bool
    decoded_bytes: float
    decoded_dtype: str
    overwrite: bool = False
    finished: bool = False

    @property
    def record(self) -> RunRecord:
        """The record that identifies this training in its folder."""
        digests = plugins.digests(self.used_plugins)
        return RunRecord(self.recipe.digest, self.datasets, self.recipe.dump(), digests, training_versions())

    @property
    def used_plugins(self) -> tuple[plugins.Plugin, ...]:
        """The plugins that the training uses."""
        augment = Pipeline.parse(self.recipe.augment).steps if self.recipe.augment else ()
        return plugins.used_by((*self.inputs.steps.steps, *self.inputs.fit.steps, *augment))

    @property
    def input_plugins(self) -> dict[str, str]:
        """Digests by name of the plugins that the trained model needs: it is used without augmentation."""
        return plugins.digests(plugins.used_by((*self.inputs.steps.steps, *self.inputs.fit.steps)))

    def described(self) -> dict[str, str | int]:
        """Returns the facts for --dry-run and the first lines of a run."""
        return {
            "model": self.recipe.model,
            "input": str(self.inputs.whole),
            "classes": len(self.train.names),
            **({} if self.train.label_sets is None else {"labels": self.train.label_sets.column}),
            "train_pictures": len(self.train),
            "val_pictures": len(self.val) if self.val is not None else 0,
            "pictures_in": "memory" if self.in_memory else "a stream from the shards",
            **describe_places(self.recipe, self.inputs, in_memory=self.in_memory, dtype=self.decoded_dtype),
            "out": self.out,
        }

    def task(self, scaling: Scaling, progress_key: str) -> TrainTask:
        """Returns the task of every worker; `progress_key` is the name under which progress is published."""
        return TrainTask(
            recipe=self.located.model_dump_json(),
            recipe_digest=self.recipe.digest,
            progress_key=progress_key,
            out=self.out,
            logs=storage.join(self.out, LOGS),
            class_counts=self.train.name_counts,
            label_sets=None if self.train.label_sets is None else self.train.label_sets.sets,
            steps=str(self.inputs.steps),
            fit=str(self.inputs.fit),
            input_size=self.inputs.size,
            channels=self.inputs.channels,
            decoded_bytes=self.decoded_bytes,
            decoded_dtype=self.decoded_dtype,
            threads=scaling.threads,
            decoders=scaling.decoders,
            decoder_cpus=scaling.decoder_cpus,
        )


def plan_train(recipe: Recipe, out: str, *, overwrite: bool = False) -> TrainPlan:
    """Plans a training, and checks everything that can be checked before Ray is started.

    Args:
        recipe: the recipe.
        out: URI of the bundle to write.
        overwrite: whether files of another training in `out` are replaced.

    Raises:
        UsageError: names what is wrong with the request or the datasets.
    """
    out, located = storage.normalize(out), recipe.located()
    train_uri, val_uri = located.data.train, located.data.val
    _check_weights(located.weights)
    manifest = load_manifest(train_uri)
    datasets = {"train": manifest.digest}
    if val_uri is not None:
        datasets["val"] = load_manifest(val_uri).digest
    train, val = _rows(recipe, train_uri, val_uri)
    inputs = model_inputs(recipe)
    for rows in (train, val):
        if rows is not None:
            check_columns(rows, inputs.columns)
            inputs.check_channels(rows.dataset, load_manifest(rows.dataset).tally.channels)
    decoded_bytes, decoded_dtype = _decoded(train, inputs, recipe)
    check_trainable(recipe, inputs, train.names, len(train), decoded_dtype)
    in_memory = decoded_bytes * len(train) <= recipe.data.max_resident_mb * 2**20
    if not in_memory and not recipe.cache_features and recipe.sampling == "balanced":
        raise UsageError(
            "sampling: balanced needs the pictures in memory; raise data.max_resident_mb, or use loss.class_weights"
        )
    if not in_memory and not recipe.cache_features and recipe.input.decode == "cuda":
        raise UsageError(
            "input.decode: cuda needs the pictures in memory, because workers without a GPU decode a stream; raise "
            "data.max_resident_mb, or set input.decode: cpu"
        )
    for rows in (train, val):
        if rows is not None and (storage.contains(out, rows.dataset) or storage.contains(rows.dataset, out)):
            raise UsageError(f"--out {out} and the dataset {rows.dataset} contain one another; choose another folder")
    plan = TrainPlan(
        recipe,
        located,
        out,
        train,
        val,
        inputs,
        datasets,
        in_memory or recipe.cache_features,
        decoded_bytes,
        decoded_dtype,
        overwrite,
    )
    return dataclasses.replace(plan, finished=is_finished(out, plan.record, overwrite=overwrite))


def _rows(recipe: Recipe, train_uri: str, val_uri: str | None) -> tuple[Rows, Rows | None]:
    """Returns the training and validation rows of the recipe."""
    classes = None if recipe.data.classes == "all" else recipe.data.classes
    if recipe.data.labels is not None:
        train, val = read_labelled_rows(train_uri, val_uri, recipe.data.labels, classes)
    else:
        train, val = read_rows(train_uri, classes), None
        if val_uri is not None:
            if classes is None:
                check_same_classes(train, load_manifest(val_uri), val_uri)
            val = read_rows(val_uri, train.classes)
    if recipe.data.val_fraction is not None:
        train, val = split_rows(train, recipe.data.val_fraction, recipe.seed)
    empty = [name for name, count in train.name_counts.items() if not count]
    if empty:
        raise UsageError(f"{train_uri} has no training pictures of: {', '.join(empty)}")
    return train, val


def _check_weights(weights: str | None) -> None:
    if weights not in (None, "pretrained") and not (storage.exists(weights) or storage.is_folder(weights)):
        raise UsageError(f"weights: there is nothing at {weights}; relative paths start from the current folder")


def check_trainable(
    recipe: Recipe, inputs: InputPipeline, classes: Sequence[str], pictures: int, dtype: str = "uint8"
) -> None:
    """Checks that one worker can train the recipe's network; reads no pictures.

    Args:
        recipe: the recipe.
        inputs: the model's input pipeline.
        classes: names of the classes.
        pictures: number of training pictures.
        dtype: of their samples.

    Raises:
        UsageError: the network cannot take inputs of this size, a batch is too small for its batch norms, a class that
            has a weight does not exist, or pictures cannot be augmented where `augment_on` says.
    """
    _check_class_weights(recipe, classes)
    describe_places(recipe, inputs, in_memory=True, dtype=dtype)  # refuses what cannot be
    if inputs.size != info(recipe.model).input_size[1:]:
        from library.models.analysis import check_input  # imports torch, which takes seconds and is seldom needed

        check_input(recipe.model, inputs.size)
    check_batch_parts(recipe, pictures, 1)


def check_batch_parts(recipe: Recipe, pictures: int, workers: int) -> None:
    """Checks that batch norms get at least two pictures.

    Called twice: for one worker before Ray starts, and then for the planned number of workers.
    """
    if recipe.cache_features:
        return
    batch_size = pictures if recipe.batch_size == "auto" else min(recipe.batch_size, pictures)
    if smallest_part(batch_size, workers, recipe.accumulate) < 2:
        # Imported here because torch takes seconds and is seldom needed.
        import torch

        from library.models.build import create
        from library.training.batch_size import check_batch_norms

        with torch.device("meta"):
            model = create(recipe.model, num_classes=2, head=recipe.head)
        check_batch_norms(recipe, model, batch_size, workers)


def _check_class_weights(recipe: Recipe, classes: Sequence[str]) -> None:
    named = recipe.loss.class_weights
    for name in named if isinstance(named, Mapping) else ():
        if name not in classes:
            raise UsageError(f"loss.class_weights: there is no class '{name}'{nearest(name, classes)}")


def model_inputs(recipe: Recipe) -> InputPipeline:
    """Returns the input pipeline of the recipe's model; the model's own size and channels are the defaults."""
    facts = info(recipe.model)
    channels = int(parse_call(recipe.model).parameters.get("in_chans", facts.input_size[0]))
    size = recipe.input.size
    height, width = facts.input_size[1:] if size is None else (size, size) if isinstance(size, int) else size
    steps = recipe.input.steps
    if steps is None:
        steps = {1: "grayscale", 3: "rgb"}.get(channels, "")
    fit = recipe.input.fit or f'resize([{height}, {width}], mode="exact")'
    return InputPipeline(
        Pipeline.parse(steps) if steps else Pipeline(), Pipeline.parse(fit), (int(height), int(width)), channels
    )


def _decoded(rows: Rows, inputs: InputPipeline, recipe: Recipe) -> tuple[float, str]:
    """Returns the mean size of a decoded picture in bytes and the type of its samples, of the first few."""
    shard = int(np.flatnonzero(rows.counts)[0])
    probed = min(int(rows.counts[shard]), _PROBED_ROWS)
    decoded = decode_rows(rows, (shard, 0, probed), inputs, fitted=recipe.augment is None)
    if not len(decoded):
        (first,) = read_pictures(rows, (shard, 0, 1), inputs.columns)
        try:
            inputs.prepare(first["bytes"], **{name: value for name, value in first.items() if name != "bytes"})
        except BadPicture as bad:
            reasons = f"{rejected_text(decoded.rejected)}; the first one: {bad.detail}"
            raise UsageError(f"none of the first {probed} pictures of {rows.dataset} can be used: {reasons}") from None
    return decoded.flat.nbytes / len(decoded), str(decoded.flat.dtype)
