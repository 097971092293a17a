"""A recipe carried out on Ray Train: `striate train`."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from cluster.connection.session import connect
from cluster.resources import placed
from cluster.shared_paths import check_shared
from jobs.train.claim import CHECKPOINTS, check_claim, claim, remove_temporaries
from jobs.train.data import data_refs
from jobs.train.placement import Placement
from jobs.train.plan import TrainPlan
from library import storage
from library.bundle.description import BundleRecord, load_record
from library.dataset import histograms
from library.dataset.lease import hold
from library.dataset.manifest import VERSIONS, load_manifest
from library.errors import BadPicture, UsageError
from library.grammar import nearest
from library.models import info, parse_call
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.steps import plugins
from library.training.in_memory import decode_rows
from library.training.rows import (
    Rows,
    check_columns,
    check_same_classes,
    read_pictures,
    read_rows,
    rejected_text,
    split_rows,
)
from library.training.sampling import smallest_part

# Of a Ray that is started here: no process of it is one that others have prepared.
_ENVIRONMENT = {"RAY_prestart_worker_first_driver": "0"}
_RUN = "run"
_PROBED_ROWS = 32


def plan_train(recipe: Recipe, out: str, *, overwrite: bool = False) -> TrainPlan:
    """Check everything that can be checked before Ray is started.

    Args:
        recipe: what to do.
        out: URI of the bundle to make.
        overwrite: replace what another training left there.

    Raises:
        UsageError: whatever is wrong with the request or the datasets.
    """
    out, located = storage.normalize(out), recipe.located()
    train_uri, val_uri = located.data.train, located.data.val
    _check_weights(located.weights)
    classes = None if recipe.data.classes == "all" else recipe.data.classes
    manifest = load_manifest(train_uri)
    datasets = {"train": manifest.digest}
    train, val = read_rows(train_uri, classes), None
    if val_uri is not None:
        val_manifest = load_manifest(val_uri)
        if classes is None:
            check_same_classes(train, val_manifest, val_uri)
        datasets["val"] = val_manifest.digest
        val = read_rows(val_uri, train.classes)
    elif recipe.data.val_fraction is not None:
        train, val = split_rows(train, recipe.data.val_fraction, recipe.seed)
    empty = [name for name, count in train.class_counts.items() if not count]
    if empty:
        raise UsageError(f"{train_uri} has no pictures to learn from of: {', '.join(empty)}")
    _check_class_weights(recipe, train.classes)
    inputs = model_inputs(recipe)
    for rows in (train, val):
        if rows is not None:
            check_columns(rows, inputs.columns)
            inputs.check_channels(rows.dataset, load_manifest(rows.dataset).tally.channels)
    if inputs.size != info(recipe.model).input_size[1:]:
        from library.models.analysis import check_input  # torch, which the other sizes need not wait for

        check_input(recipe.model, inputs.size)
    resident = _bytes_needed(train, inputs, recipe) <= recipe.data.max_resident_mb * 2**20
    if not resident and not recipe.cache_features and recipe.sampling == "balanced":
        raise UsageError(
            "sampling: balanced needs the pictures in memory; raise data.max_resident_mb, or use loss.class_weights"
        )
    _check_batch_norms(recipe, len(train), 1)
    used = plugins.used_by(
        (*inputs.steps.steps, *inputs.fit.steps, *(Pipeline.parse(recipe.augment).steps if recipe.augment else ()))
    )
    plan = TrainPlan(
        recipe,
        located,
        out,
        train,
        val,
        inputs,
        datasets,
        resident or recipe.cache_features,
        overwrite,
        plugins=plugins.digests(used),
    )
    return dataclasses.replace(plan, finished=check_claim(plan))


def _check_weights(weights: str | None) -> None:
    if weights not in (None, "pretrained") and not (storage.exists(weights) or storage.is_folder(weights)):
        raise UsageError(f"weights: there is nothing at {weights}; a relative path starts from the current folder")


def _check_batch_norms(recipe: Recipe, pictures: int, workers: int) -> None:
    """Before Ray is asked, and again once it is known how many workers there may be."""
    if recipe.cache_features:
        return
    batch_size = pictures if recipe.batch_size == "auto" else min(recipe.batch_size, pictures)
    if smallest_part(batch_size, workers, recipe.accumulate) < 2:  # else PyTorch need not be waited for
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
    """What the recipe's model sees: its own size and channels where the recipe says nothing else."""
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


def _bytes_needed(rows: Rows, inputs: InputPipeline, recipe: Recipe) -> float:
    """Of all pictures decoded, from the first few."""
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
    return decoded.flat.nbytes / len(decoded) * len(rows)


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        bundle: record of the bundle.
        out: its URI.
        position: epochs and steps done.
        seconds: of the training loop.
        first_step_at: when the first step was done, in seconds since the epoch.
        workers_by_node: how many there were at the end, by Ray's id of the node.
        resumed: whether it was done before.
    """

    bundle: BundleRecord
    out: str
    position: dict[str, Any]
    seconds: float
    first_step_at: float | None = None
    resumed: bool = False
    workers_by_node: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])


def train(
    plan: TrainPlan,
    *,
    workers: str = "1",
    gpu: bool | None = None,
    cpus_per_worker: float | None = None,
    size: str | None = None,
    address: str | None = None,
) -> TrainResult:
    """Carry out a plan; a killed training goes on from its last checkpoint when this is called again.

    Args:
        plan: of `plan_train`.
        workers: how many, or `1-8` for as many of these as there is room for.
        gpu: a GPU a worker; None uses them where there are any.
        cpus_per_worker: logical CPUs of each; None leaves half of all to decoding.
        size: a named size instead of all three.
        address: of a Ray cluster.

    Raises:
        UsageError: another command writes to the bundle's folder now.
        StriateError: when the loss is no number any more, or the workers failed too often.
    """
    if plan.finished:
        return TrainResult(load_record(plan.out), plan.out, {}, 0.0, resumed=True)
    with hold(plan.out, tidy=remove_temporaries):
        if check_claim(plan):  # another command was faster
            return TrainResult(load_record(plan.out), plan.out, {}, 0.0, resumed=True)
        with connect(address, environment=_ENVIRONMENT) as session:
            from jobs.train.run import fit

            if size is not None:
                need = placed(size, "train", may_grow=session.may_grow)
                workers, gpu, cpus_per_worker = str(need.workers), need.gpus > 0, need.cpus
            placement = Placement.of(session, workers, gpu=gpu, cpus_per_worker=cpus_per_worker)
            _check_batch_norms(plan.recipe, len(plan.train), placement.workers[1])
            check_shared(reads=_read_by_workers(plan), writes=[plan.out])
            claim(plan)
            run = uuid.uuid4().hex
            refs = data_refs(plan, session)
            checkpoint, ended = fit(plan, refs, placement, run, storage.join(plan.out, CHECKPOINTS), _RUN)
        record = _bundle(plan, checkpoint, ended)
    return TrainResult(
        record,
        plan.out,
        ended["position"],
        ended["seconds"],
        ended["first_step_at"],
        workers_by_node=dict(sorted(Counter(ended["nodes"]).items())),
    )


def _read_by_workers(plan: TrainPlan) -> list[str]:
    weights = plan.located.weights
    own = [] if weights is None or weights == "pretrained" else [weights]
    return [*(rows.dataset for rows in (plan.train, plan.val) if rows is not None), *own]


def _bundle(plan: TrainPlan, checkpoint: dict[str, Any], ended: dict[str, Any]) -> BundleRecord:
    from library.bundle.bundle import Bundle  # torch, which Ray need not wait for
    from library.models.build import create

    recipe, position = plan.recipe, checkpoint["position"]
    model = create(recipe.model, num_classes=len(plan.train.classes), head=recipe.head)
    model.load_state_dict(checkpoint["best_model"])
    record = BundleRecord(
        model=str(parse_call(recipe.model)),
        head=tuple(recipe.head),
        classes=plan.train.classes,
        steps=str(plan.inputs.steps),
        fit=str(plan.inputs.fit),
        input_size=plan.inputs.size,
        channels=plan.inputs.channels,
        precision=recipe.precision,
        metrics=position["metrics"] | {"epoch": position["epoch"], "step": position["step"]},
        provenance={
            "recipe": recipe.dump(),
            "recipe_digest": recipe.digest,
            "datasets": {"train": plan.train.dataset} | ({"val": plan.val.dataset} if plan.val is not None else {}),
            "dataset_digests": plan.datasets,
            "train_pictures": len(plan.train),
            "class_counts": plan.train.class_counts,
            "histograms": histograms.of_dataset(plan.train.dataset, plan.datasets["train"]),
            "versions": _versions(),
            "git_commit": _git_commit(),
            "seconds": round(ended["seconds"], 1),
        }
        | plugins.recorded(plan.plugins),
    )
    bundle = Bundle.of_model(record, model, device="cpu")
    bundle.save(plan.out)
    return bundle.record


def _versions() -> dict[str, str]:
    return VERSIONS | {name: version(name) for name in ("ray", "timm", "torch", "torchvision")}


def _git_commit() -> str | None:
    """Of the working folder where it is a git checkout; None elsewhere."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, cwd=os.getcwd())
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
