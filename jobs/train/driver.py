"""Runs a planned training: starts Ray, prepares the pictures, runs Ray Train and writes the bundle."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from cluster.connection.session import connect
from cluster.resources import need_on_cluster
from cluster.shared_paths import check_shared
from jobs.train.checkpoint import TrainingCheckpoint
from jobs.train.plan import TrainPlan, check_batch_parts
from jobs.train.run_folder import CHECKPOINTS, claim, is_finished, remove_temporaries
from jobs.train.scaling import Scaling
from jobs.train.worker_task import TrainOutcome, TrainTimes
from library import storage
from library.bundle.description import WEIGHTS, BundleRecord, TrainedDecoder, load_record, weights_bundle
from library.dataset import histograms
from library.dataset.lease import hold
from library.dataset.manifest import VERSIONS
from library.models import parse_call
from library.steps import plugins
from library.training.progress import TrainingProgress

# A Ray that is started here needs no worker processes in advance.
_ENVIRONMENT = {"RAY_prestart_worker_first_driver": "0"}


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        bundle: the bundle's record.
        out: the bundle's URI.
        progress: where the training ended; None if it had finished before.
        seconds: duration of the training loop.
        compile_seconds: of it, what torch.compile took.
        times: when each part of the training was completed.
        resumed: whether the training had finished before.
        workers_by_node: number of workers at the end, by Ray's id of the node.
    """

    bundle: BundleRecord
    out: str
    progress: TrainingProgress | None = None
    seconds: float = 0.0
    compile_seconds: float = 0.0
    times: TrainTimes = field(default_factory=TrainTimes)
    resumed: bool = False
    workers_by_node: Mapping[str, int] = field(default_factory=dict[str, int])


def train(
    plan: TrainPlan,
    *,
    workers: str = "1",
    gpu: bool | None = None,
    cpus_per_worker: float | None = None,
    size: str | None = None,
    address: str | None = None,
) -> TrainResult:
    """Runs a planned training. If it was killed before, it resumes from its last checkpoint.

    Args:
        plan: the plan, from `plan_train`.
        workers: number of workers, or a range such as `1-8` for as many as there are resources for.
        gpu: whether each worker gets a GPU; None uses GPUs if there are any.
        cpus_per_worker: logical CPUs of each worker; None leaves half of all CPUs for decoding.
        size: a named size in place of the three settings above.
        address: address of a Ray cluster.

    Raises:
        UsageError: when another command is writing to the bundle's folder.
        StriateError: when the training diverged, or the workers failed too often.
    """
    planned = time.time()
    if plan.finished:
        return TrainResult(load_record(plan.out), plan.out, resumed=True)
    with hold(plan.out, tidy=remove_temporaries):
        if is_finished(plan.out, plan.record, overwrite=plan.overwrite):  # by another command, after planning
            return TrainResult(load_record(plan.out), plan.out, resumed=True)
        with connect(address, environment=_ENVIRONMENT) as session:
            # They import Ray Train and torch, which takes seconds; planning and a finished training need neither.
            connected = time.time()
            from jobs.train.data import check_decoder, put_data
            from jobs.train.fit import fit

            if size is not None:
                need = need_on_cluster(size, "train", may_grow=session.may_grow)
                workers, gpu, cpus_per_worker = str(need.workers), need.gpus > 0, need.cpus
            scaling = Scaling.choose(session, workers, gpu=gpu, cpus_per_worker=cpus_per_worker)
            check_batch_parts(plan.recipe, len(plan.train), scaling.workers[1])
            check_decoder(plan, session)
            check_shared(reads=_paths_read_by_workers(plan), writes=[plan.out])
            claim(plan.out, plan.record, overwrite=plan.overwrite)
            base = weights_bundle(plan.located.weights)
            data = put_data(plan, session)
            put = time.time()
            best, outcome = fit(plan, data, scaling, uuid.uuid4().hex, storage.join(plan.out, CHECKPOINTS))
            record = _write_bundle(plan, best, outcome, base)
    return TrainResult(
        record,
        plan.out,
        outcome.progress,
        outcome.seconds,
        outcome.compile_seconds,
        dataclasses.replace(outcome.times, planned=planned, connected=connected, put=put, written=time.time()),
        workers_by_node=dict(sorted(Counter(outcome.nodes).items())),
    )


def _paths_read_by_workers(plan: TrainPlan) -> list[str]:
    weights = plan.located.weights
    weights_paths = [] if weights is None or weights == "pretrained" else [weights]
    return [*(rows.dataset for rows in (plan.train, plan.val) if rows is not None), *weights_paths]


def _write_bundle(
    plan: TrainPlan, best: TrainingCheckpoint, outcome: TrainOutcome, base: tuple[str, str] | None
) -> BundleRecord:
    # They import torch, which Ray's start does not wait for.
    from library.bundle.bundle import Bundle
    from library.models.build import create

    recipe, progress = plan.recipe, best.progress
    model = create(recipe.model, num_classes=len(plan.train.names), head=recipe.head)
    model.load_state_dict(best.best_model)
    record = BundleRecord(
        model=str(parse_call(recipe.model)),
        head=tuple(recipe.head),
        classes=plan.train.names,
        multilabel=plan.train.label_sets is not None,
        steps=str(plan.inputs.steps),
        fit=str(plan.inputs.fit),
        input_size=plan.inputs.size,
        channels=plan.inputs.channels,
        precision=recipe.precision,
        metrics=progress.metrics | {"epoch": progress.epoch, "step": progress.step},
        provenance={
            "recipe": recipe.dump(),
            "recipe_digest": recipe.digest,
            "datasets": {"train": plan.train.dataset} | ({"val": plan.val.dataset} if plan.val is not None else {}),
            "dataset_digests": plan.datasets,
            **({} if base is None else {"weights": {"bundle": base[0], "bundle_id": base[1]}}),
            "train_pictures": len(plan.train),
            # By another name where a picture has several: then they do not say how often a class is the most probable.
            "class_counts" if plan.train.label_sets is None else "label_counts": plan.train.name_counts,
            "histograms": histograms.of_dataset(plan.train.dataset, plan.datasets["train"]),
            "versions": _versions(),
            "git_commit": _git_commit(),
            "seconds": round(outcome.seconds, 1),
            **({} if outcome.augmentation is None else {"augmented_on": outcome.augmentation}),
            **plugins.recorded(plan.input_plugins),
        },
    )
    bundle = Bundle.of_model(record, model, device="cpu")
    if recipe.input.decode == "cuda":
        decoder = _compared_decoder(plan, bundle.record, bundle.files()[WEIGHTS])
        bundle = Bundle.of_model(record.model_copy(update={"decoder": decoder}), model, device="cpu")
    bundle.save(plan.out)
    return bundle.record


def _compared_decoder(plan: TrainPlan, record: BundleRecord, weights: bytes) -> TrainedDecoder:
    """Measures on a GPU how much the decoder of the training pictures differs from the CPU's."""
    import ray

    from jobs.train.data import decoding_inputs
    from jobs.train.decoder import compare_with_cpu

    compare: Any = ray.remote(num_gpus=1)(compare_with_cpu)
    arguments = (record.model_dump_json(), weights, plan.train, decoding_inputs(plan), plan.used_plugins)
    return TrainedDecoder.model_validate_json(str(ray.get(compare.remote(*arguments))))


def _versions() -> dict[str, str]:
    return VERSIONS | {name: version(name) for name in ("ray", "timm", "torch", "torchvision")}


def _git_commit() -> str | None:
    """Returns the commit of the current folder if it is a git checkout; else None."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=os.getcwd())
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
