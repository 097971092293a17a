"""Runs Ray Train: its configuration, its workers' entry point, and how a run ended."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pyarrow.fs
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

from cluster import ray_internals
from cluster.console import say
from jobs.progress import status
from jobs.train.checkpoint import CHECKPOINT_PREFIX, TrainingCheckpoint
from jobs.train.data import TrainData
from jobs.train.plan import TrainPlan
from jobs.train.process_group import NodeGroupConfig
from jobs.train.reporting import mlflow_logger, report_while
from jobs.train.scaling import Scaling
from jobs.train.worker_task import Divergence, TrainOutcome, TrainTask
from library import storage, stores
from library.errors import StriateError
from library.steps import plugins

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_RUN_NAME = "run"
_MAX_FAILURES = 3
# After a node is lost, Ray Train may at first ask for as many workers as before. An elastic training then waits this
# long before it takes fewer; with a fixed number of workers Ray Train's own minute stays, as a node may be starting.
_ELASTIC_START = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
# An autoscaler's machine with GPUs takes ten minutes or more to start.
_AUTOSCALED_START = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
_WAITING = (
    "waiting for resources: the workers need more than the cluster has now (see `ray status`). An autoscaler may add "
    "nodes; each attempt waits for up to half an hour."
)
_CHECKPOINTS_KEPT = 2
_KEYS_SHOWN = 12
# How torch's threads wait for each other. Where decoders or augmentation share the CPUs, spinning made a LeNet 25 times
# slower, and sleeping costs it a quarter; where nothing else runs, a short spin costs nothing.
_SHARED_CPUS = {"OMP_WAIT_POLICY": "PASSIVE"}
_OWN_CPUS = {"GOMP_SPINCOUNT": "1000"}
# Each step allocates and frees the same memory. By default glibc returns it to the system in between, which costs some
# 2,000 page faults a step of a LeNet, a fifth of its time. Blocks above 32 MiB are still mapped each time.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}


def fit(
    plan: TrainPlan, data: TrainData, scaling: Scaling, progress_key: str, checkpoints: str
) -> tuple[TrainingCheckpoint, TrainOutcome]:
    """Runs Ray Train to its end; resumes from the last checkpoint in `checkpoints`, if there is one.

    Args:
        plan: the plan.
        data: the pictures in Ray's object store.
        scaling: the workers and their resources.
        progress_key: name under which workers publish their progress.
        checkpoints: URI of the folder for checkpoints.

    Returns:
        The best checkpoint, and how the training ended.

    Raises:
        StriateError: when the training failed.
    """
    if scaling.waits_for_nodes:
        os.environ.setdefault(*_AUTOSCALED_START)
        say(_WAITING, file=sys.stderr, flush=True)
    elif scaling.workers[0] < scaling.workers[1]:
        os.environ.setdefault(*_ELASTIC_START)
    for logger in ("ray.train", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    trainer = _trainer(plan, data, scaling, progress_key, checkpoints)
    facts = {"out": plan.out, "recipe_digest": plan.recipe.digest, **plan.described()}
    log = mlflow_logger(storage.name_of(plan.out), facts)
    try:
        result = report_while(trainer.fit, progress_key, log)
    except TrainingFailedError as error:
        raise StriateError(_failure_text(error)) from error
    except RayError as error:
        # Ray's first line names the process, and the last one of a remote traceback the exception.
        first, *others = str(error).strip().splitlines()
        reason = f"{first} ({others[-1].strip()})" if others else first
        raise StriateError(f"Ray failed: {reason}; the same command resumes the training") from error
    finally:
        # Only after the last report, because the last epoch ends together with the training.
        with contextlib.suppress(RayError, RuntimeError):
            status.clear(progress_key)
    returned: Any = result.return_value
    outcome = TrainOutcome.from_dict(returned) if returned else TrainOutcome()
    if outcome.error is not None:
        raise StriateError(outcome.error)
    if outcome.divergence is not None:
        raise StriateError(_divergence_text(outcome.divergence, checkpoints))
    best = result.get_best_checkpoint("score", "max") if result.best_checkpoints else None
    if best is None or not returned:
        raise StriateError("the training ended without a checkpoint, so there is no model to save")
    known = [*(checkpoint for checkpoint, _ in result.best_checkpoints or ()), result.checkpoint]
    _remove_partial(storage.join(checkpoints, _RUN_NAME), {storage.name_of(each.path) for each in known if each})
    with best.as_directory() as folder:
        return TrainingCheckpoint.load(folder, "cpu"), outcome


def run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The entry point of every training worker; rank 0's return value is the outcome of the training."""
    entered = time.time()
    # The loop imports torch and timm. The driver and Ray Train's controller import this module without them.
    from jobs.train.loop import run_loop

    plugins.install(config["plugins"])
    return run_loop(TrainTask(**config["task"]), config["data"], entered).to_dict()


def _trainer(
    plan: TrainPlan, data: TrainData, scaling: Scaling, progress_key: str, checkpoints: str
) -> DataParallelTrainer:
    low, high = scaling.workers
    omp = _OWN_CPUS if plan.in_memory and not plan.recipe.augment else _SHARED_CPUS
    return (ray_internals.trainer() if scaling.cluster else ray_internals.local_trainer())(
        run_worker,
        train_loop_config={
            "task": plan.task(scaling, progress_key).to_dict(),
            "data": data,
            "plugins": plan.used_plugins,
        },
        backend_config=NodeGroupConfig(),
        scaling_config=ScalingConfig(
            num_workers=high if low == high else (low, high),
            use_gpu=scaling.gpu,
            resources_per_worker={"CPU": scaling.worker_cpus, **({"GPU": 1} if scaling.gpu else {})},
            # GPUs of one node exchange gradients faster; CPU workers would share one node's CPUs while others idle.
            placement_strategy="PACK" if scaling.gpu else "SPREAD",
        ),
        run_config=RunConfig(
            name=_RUN_NAME,  # a run of the same name resumes
            **_storage_options(checkpoints),
            worker_runtime_env={"env_vars": _MALLOC | omp},
            failure_config=FailureConfig(max_failures=_MAX_FAILURES, controller_failure_limit=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=_CHECKPOINTS_KEPT, checkpoint_score_attribute="score", checkpoint_score_order="max"
            ),
        ),
    )


def _storage_options(checkpoints: str) -> dict[str, Any]:
    if not storage.is_remote(checkpoints):
        return {"storage_path": checkpoints}
    filesystem, path = stores.opened(checkpoints)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))}


def _remove_partial(run_folder: str, known: set[str]) -> None:
    """Removes checkpoints whose upload was killed; Ray Train does not know of them."""
    for file in storage.list_files(run_folder):
        folder = file.path.partition("/")[0]
        if folder.startswith(CHECKPOINT_PREFIX) and folder not in known:
            storage.remove([file.uri])
            storage.remove_empty_folder(storage.join(run_folder, folder))


def _failure_text(error: TrainingFailedError) -> str:
    """Returns a message with the worker's own exception, if there is one."""
    causes = getattr(error, "worker_failures", None) or {}
    cause: BaseException = next(iter(causes.values()), error)
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line for line in str(cause).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(cause).__name__
    if not causes:
        return f"the training's workers did not start: {reason}"
    return f"the training failed {_MAX_FAILURES + 1} times: {reason}"


def _divergence_text(divergence: Divergence, checkpoints: str) -> str:
    keys = divergence.keys
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else "")
    return (
        f"the loss is {divergence.loss} at step {divergence.step} (learning rate {divergence.learning_rate:.3g}); "
        f"the pictures of that batch: {shown}. A lower optimizer.lr, a longer schedule.warmup_epochs or clip_grad "
        f"usually helps. Earlier checkpoints are in {checkpoints}."
    )
