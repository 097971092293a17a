"""What a classifier says of every picture of a dataset, shard by shard: `striate predict BUNDLE DATASET DEST`."""

from __future__ import annotations

import dataclasses

from cluster.connection.session import connect
from jobs.shards.dataset_job import ShardPlan, make_shards, shard_tasks
from jobs.shards.pool_size import pool_for_classifiers
from library import storage
from library.bundle.description import load_record
from library.dataset.destination import check_apart, check_claim, remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import Job, Manifest, load_manifest
from library.dataset.shards import ShardReader
from library.errors import StriateError, UsageError
from library.pipeline.inputs import InputPipeline
from library.work.predict_shard import PredictJob, predicted_schema

# As library.runtimes has them, which imports torch.
_RUNTIMES = ("eager", "compile", "onnx")


def plan_predict(
    bundle: str,
    source: str,
    destination: str,
    *,
    top_k: int = 5,
    features: bool = False,
    runtime: str | None = None,
    gpu: bool | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> ShardPlan[PredictJob]:
    """Check everything that can be checked before Ray is started; writes nothing.

    Args:
        bundle: URI of a classifier.
        source: URI of a dataset; its pictures need no labels.
        destination: URI of the dataset to make.
        top_k: how many classes are kept of each answer.
        features: whether the vector that the classifier's head sees is kept too.
        runtime: how probabilities are computed; None as `PredictJob` says.
        gpu: whether the workers use GPUs; None where there are any, which only Ray can say.
        limit: only the first so many pictures.
        overwrite: replace what another job left at the destination.

    Raises:
        UsageError: whatever is wrong with the request.
    """
    bundle, source, destination = (storage.normalize(uri) for uri in (bundle, source, destination))
    if top_k < 1:
        raise UsageError(f"--top-k {top_k}: at least 1 class")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 picture")
    if runtime == "auto":
        raise UsageError(
            "--runtime auto may choose differently on two machines, and the shards of one dataset would then differ in "
            f"their last digits; name one: {', '.join(_RUNTIMES)}"
        )
    if runtime is not None and runtime not in _RUNTIMES:
        raise UsageError(f"--runtime {runtime}: there are {', '.join(_RUNTIMES)}")
    if features and runtime not in (None, "eager"):
        raise UsageError(f"--features come from the network itself, and --runtime {runtime} gives probabilities only")
    check_apart(source, destination)
    record, manifest = load_record(bundle), load_manifest(source)
    if features and record.members:
        raise UsageError(f"{bundle} is an ensemble and has no features of its own; ask one of its members for them")
    _check_columns(source, manifest, record.id, features)
    if not record.members:
        inputs = InputPipeline.parse(record.steps, record.fit, record.input_size, record.channels)
        inputs.check_channels(source, manifest.tally.channels)
    options = {"bundle_id": record.id, "top_k": top_k, "features": features, "runtime": runtime, "limit": limit}
    job = Job(kind="predict", source=source, source_digest=manifest.digest, options=options)
    check_claim(destination, job, overwrite=overwrite)
    work = PredictJob(source, bundle, record.id, top_k, features, runtime, "cuda" if gpu else "cpu")
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
            "features": features,
            "runtime": work.chosen_runtime if runtime or gpu is not None or features else "eager on a GPU, else onnx",
            "device": work.device if gpu is not None else "cuda where Ray has a GPU, else cpu",
        },
        overwrite,
    )


def _check_columns(source: str, manifest: Manifest, bundle_id: str, features: bool) -> None:
    if manifest.shards:
        schema = ShardReader(storage.join(source, manifest.shards[0].name)).schema()
        try:
            predicted_schema(schema, bundle_id, features=features)
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
    """Carry out a plan; a killed job goes on where it was when this is called again.

    Args:
        plan: from `plan_predict`.
        workers: how many; `auto` is one a GPU, or else one a CPU.
        gpu: as the plan was given it.
        size: a named size instead of both.
        address: of the Ray cluster.

    Returns:
        The manifest of the finished destination.

    Raises:
        UsageError: another command writes there now.
        StriateError: when a shard fails; those done by then stay.
    """
    with hold(plan.destination, tidy=remove_uncommitted), connect(address) as session:
        pool = pool_for_classifiers(session, workers, gpu, len(plan.tasks), size)
        work = dataclasses.replace(plan.work, device=pool.device, threads=pool.cpus)
        return make_shards("predict", dataclasses.replace(plan, work=work), pool, reads=[work.bundle])
