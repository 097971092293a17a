"""Predicts the classes of a dataset on Ray, or of a few pictures in this process: `striate predict`.

Importing this module imports neither Ray nor PyTorch: a few pictures need no Ray, and a wrong path is reported before
PyTorch is imported.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.connection.session import connect
from jobs.shards.dataset_job import ShardPlan, make_shards, shard_tasks
from jobs.shards.pool_size import WorkerPool, pool_for_classifiers
from library import storage
from library.bundle.description import BundleRecord, Prediction, load_record, plugins_of
from library.dataset.destination import check_apart, check_claim, remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import MANIFEST, Job, Manifest, load_manifest, manifest_uri
from library.dataset.shards import ShardReader
from library.errors import BadPicture, StriateError, UsageError
from library.imaging import codec
from library.pipeline.inputs import InputPipeline
from library.runtimes import NAMES, NAMES_TEXT
from library.sources.entries import is_picture_name
from library.sources.folder import scan
from library.steps.plugins import named
from library.work.predict_shard import THRESHOLD, PredictJob, predicted_schema

_BATCH = 32


def is_dataset_and_destination(bundle: str, paths: Sequence[str]) -> bool:
    """Whether `paths` are a dataset (a folder with a manifest) and one destination.

    Raises:
        UsageError: when they include a dataset, but not exactly one destination after it.
    """
    datasets = [path for path in paths if _is_dataset(path)]
    if not datasets:
        return False
    if len(paths) == 2 and datasets[0] == paths[0] and not _holds_pictures(paths[1]):
        return True
    typed, dataset = shlex.quote(bundle), shlex.quote(datasets[0])
    raise UsageError(
        f"{datasets[0]} is a dataset and needs exactly one more path, the dataset to write:\n"
        f"  striate predict {typed} {dataset} DEST    (DEST: a new folder) predicts every picture of it\n"
        f"  striate predict {typed} PICTURE...    (files and folders of pictures) prints their classes"
    )


def picture_files(path: str) -> list[str]:
    """Returns a file itself, or the pictures below a folder by their file names, without hidden files.

    A folder without pictures is returned itself, and later reported as unreadable.

    Raises:
        UsageError: when the folder contains datasets.
    """
    uri = storage.normalize(path)
    # In a bucket any name may be a prefix; checking each picture would cost a request each.
    if is_picture_name(path) or not storage.is_folder(uri):
        return [path]
    files = scan(uri).path
    datasets = [name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == MANIFEST]
    if datasets:
        named = " or ".join(storage.join(path, name) for name in datasets[:3])
        raise UsageError(f"{path} contains datasets, not pictures; name one of them and DEST: {named}")
    return [storage.join(path, name) for name in files if is_picture_name(name)] or [path]


def _is_dataset(path: str) -> bool:
    return not is_picture_name(path) and storage.exists(manifest_uri(storage.normalize(path)))


def _holds_pictures(path: str) -> bool:
    """Whether `path` is a picture, another file or a folder of pictures, and so not a destination."""
    uri = storage.normalize(path)
    if is_picture_name(path):
        return True
    if _is_dataset(path):
        return False
    if storage.exists(uri) and not storage.is_folder(uri):
        return True
    return any(is_picture_name(file.path) for file in storage.list_files(uri))


@dataclass(frozen=True)
class Answer:
    """The prediction for one file, or why there is none."""

    file: str
    result: Prediction | BadPicture

    def described(self) -> Mapping[str, Any]:
        """Returns the answer as it is printed with --json."""
        if isinstance(self.result, BadPicture):
            return {"file": self.file, "error": {"reason": self.result.reason, "detail": self.result.detail}}
        classes = [{"class": name, "probability": probability} for name, probability in self.result.classes]
        return {"file": self.file, "classes": classes}


class Classifier(Protocol):
    """The part of `library.bundle.bundle.Bundle` that predicts encoded pictures."""

    def predict_many(self, pictures: Sequence[bytes], top_k: int = 5, /) -> Sequence[Prediction | BadPicture]:
        """Returns a prediction, or the reason for none, for each picture."""
        ...


def predict_files(classifier: Classifier, files: Sequence[str], *, top_k: int = 5) -> Iterator[Answer]:
    """Classifies picture files one batch at a time; an unusable file does not stop the others.

    Args:
        classifier: usually a `Bundle`.
        files: paths and s3:// URIs of pictures.
        top_k: number of classes in each answer; all if the classifier has fewer.

    Raises:
        UsageError: when `top_k` is below 1.
    """
    if top_k < 1:
        raise UsageError(f"--top-k {top_k}: must be at least 1")
    for first in range(0, len(files), _BATCH):
        names = files[first : first + _BATCH]
        read = [_read(name) for name in names]
        results = iter(classifier.predict_many([data for data in read if isinstance(data, bytes)], top_k))
        for name, data in zip(names, read, strict=True):
            yield Answer(name, data if isinstance(data, BadPicture) else next(results))


def _read(file: str) -> bytes | BadPicture:
    try:
        uri = storage.normalize(file)
        if not storage.is_remote(uri) and storage.is_folder(uri):
            return BadPicture("no_pictures", "the folder contains no file with a picture's name")
        return storage.read_bytes(uri, max_bytes=codec.DEFAULT_LIMITS.max_bytes)
    except StriateError as error:
        return BadPicture("cannot_read", str(error))


def plan_predict(
    bundle: str,
    source: str,
    destination: str,
    *,
    top_k: int = 5,
    threshold: float | None = None,
    features: bool = False,
    runtime: str | None = None,
    gpu: bool | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> ShardPlan[PredictJob]:
    """Checks everything that can be checked before Ray starts; writes nothing.

    Args:
        bundle: URI of a classifier.
        source: URI of a dataset; labels are not needed.
        destination: URI of the dataset to write.
        top_k: number of classes to store for each picture.
        threshold: for a classifier that gives a picture any number of classes, the probability from which on a class
            is among its `predicted_labels`; None for 0.5.
        features: whether to store the input of the classifier's last layers too.
        runtime: how probabilities are computed; None for the default of `PredictJob`.
        gpu: whether workers use GPUs; None to use them if Ray has any.
        limit: number of pictures to read, from the first; None for all.
        overwrite: replace what another job left at the destination.

    Raises:
        UsageError: for anything wrong with the request.
    """
    bundle, source, destination = (storage.normalize(uri) for uri in (bundle, source, destination))
    if top_k < 1:
        raise UsageError(f"--top-k {top_k}: must be at least 1")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    if runtime == "auto":
        raise UsageError(
            "--runtime auto may choose different runtimes on two machines, whose results differ in the last digits; "
            f"choose one for the whole dataset: {NAMES_TEXT}"
        )
    if runtime is not None and runtime not in NAMES:
        raise UsageError(f"--runtime {runtime}: choose {NAMES_TEXT}")
    if features and runtime not in (None, "eager"):
        raise UsageError(f"--features needs --runtime eager: {runtime} returns probabilities only")
    check_apart(source, destination)
    record, manifest = load_record(bundle), load_manifest(source)
    if features and record.members:
        raise UsageError(f"{bundle} is an ensemble, which has no features; use one of its members")
    threshold = _threshold(bundle, record, threshold)
    _check_columns(source, manifest, record, features)
    if not record.members:
        inputs = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
        inputs.check_channels(source, manifest.tally.channels)
    options = {"bundle_id": record.id, "top_k": top_k, "features": features, "runtime": runtime, "limit": limit}
    options |= {} if threshold is None else {"threshold": threshold}
    job = Job(kind="predict", source=source, source_digest=manifest.digest, options=options)
    check_claim(destination, job, overwrite=overwrite)
    device = "cuda" if gpu else "cpu"
    work = PredictJob(source, bundle, record.id, top_k, features, runtime, device, threshold=threshold)
    return ShardPlan(
        source,
        destination,
        (*manifest.jobs, job),
        shard_tasks(manifest, destination, limit),
        work,
        {
            "bundle": bundle,
            "bundle_id": record.id,
            "classes": len(record.classes),
            "top_k": top_k,
            **({} if threshold is None else {"threshold": threshold}),
            "features": features,
            "runtime": work.chosen_runtime if runtime or gpu is not None or features else "eager on a GPU, else onnx",
            "device": work.device if gpu is not None else "cuda if Ray has a GPU, else cpu",
        },
        overwrite,
        used_plugins=named(plugins_of(bundle, record)),
    )


def _threshold(bundle: str, record: BundleRecord, wanted: float | None) -> float | None:
    """Returns the probability from which on a class is predicted; None for a classifier of one class."""
    if not record.multilabel:
        if wanted is not None:
            raise UsageError(
                f"--threshold has no effect: {bundle} gives a picture its most probable class; leave it out"
            )
        return None
    if wanted is not None and not 0 < wanted < 1:
        raise UsageError(f"--threshold {wanted:g}: must be a probability between 0 and 1")
    return THRESHOLD if wanted is None else wanted


def _check_columns(source: str, manifest: Manifest, record: BundleRecord, features: bool) -> None:
    if manifest.shards:
        schema = ShardReader(storage.join(source, manifest.shards[0].name)).schema()
        try:
            predicted_schema(schema, record.id, features=features, several_labels=record.multilabel)
        except StriateError as error:
            raise UsageError(f"{source}: {error}") from None


def predict_dataset(
    plan: ShardPlan[PredictJob],
    *,
    workers: str = "auto",
    gpu: bool | None = None,
    size: str | None = None,
    address: str | None = None,
) -> Manifest:
    """Carries out a plan; after a kill, calling this again resumes the job.

    Args:
        plan: from `plan_predict`.
        workers: how many; `auto` is one per GPU, else one per CPU.
        gpu: the same value as in `plan_predict`.
        size: named size that replaces `workers` and `gpu`.
        address: of the Ray cluster.

    Returns:
        The manifest of the finished destination.

    Raises:
        UsageError: when another command is writing to the destination.
        StriateError: when a shard fails; finished shards are kept.
    """
    with hold(plan.destination, tidy=remove_uncommitted), connect(address) as session:
        return predict_shards(plan, pool_for_classifiers(session, workers, gpu, len(plan.tasks), size))


def predict_shards(plan: ShardPlan[PredictJob], pool: WorkerPool) -> Manifest:
    """Carries out a plan with the Ray that is connected; see `predict_dataset`.

    Args:
        plan: from `plan_predict`.
        pool: the workers.
    """
    from jobs.shards.shared_graph import share_graph

    work = dataclasses.replace(plan.work, device=pool.device, threads=pool.cpus)
    if work.chosen_runtime == "onnx" and not load_record(work.bundle).members:
        work = dataclasses.replace(work, graph=share_graph(work.bundle, work.bundle_id, plan.used_plugins))
    return make_shards(
        "predict", dataclasses.replace(plan, work=work), pool, reads=[work.bundle], bundle_id=work.bundle_id
    )
