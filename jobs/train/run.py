"""One fit of Ray Train: what is shown meanwhile, and how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import pyarrow.fs
import torch
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from rich.live import Live

from cluster import ray_internals
from cluster.console import Terminal, say
from jobs.progress import status
from jobs.progress.display import duration
from jobs.train.checkpoint import CHECKPOINT_PREFIX, load_state
from jobs.train.loop import train_loop
from jobs.train.placement import Placement
from jobs.train.plan import TrainPlan
from jobs.train.rendezvous import NodeTorchConfig
from jobs.train.tracking import mlflow_logger
from library import storage, stores
from library.errors import StriateError
from library.steps import plugins

_LINE_EVERY_S = 10.0
_LOOK_EVERY_S = 0.5
_MAX_FAILURES = 3
# Ray Train may ask for the workers of a node that is lost already; as many as are left then come this much later. With
# a fixed number of workers its own minute stays: a node may be on its way.
_ELASTIC_START = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
# A machine with GPUs takes ten minutes where the cloud has one at once.
_AUTOSCALED_START = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
_WAITING = (
    "waiting for resources: the workers need more than the cluster has now (`ray status`). An autoscaler may bring it; "
    "each attempt waits for half an hour at most"
)
_KEPT = 2
_KEYS_SHOWN = 12
# How torch's threads wait for each other. Where decoders or augmentation share the CPUs, spinning made a LeNet 25 times
# slower, and sleeping costs it a quarter; where nothing else runs, a short spin costs nothing.
_SHARED_CPUS = {"OMP_WAIT_POLICY": "PASSIVE"}
_OWN_CPUS = {"GOMP_SPINCOUNT": "1000"}
# A step takes and gives back the same memory again and again. By default glibc returns it to the system in between:
# some 2,000 page faults a step of a LeNet, a fifth of its time. Larger pieces than 32 MiB are mapped anew as ever.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}


def fit(
    plan: TrainPlan, refs: dict[str, Any], placement: Placement, run: str, checkpoints: str, name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run Ray Train to its end.

    Args:
        plan: what to train.
        refs: by role, the pictures in Ray's object store (`jobs.train.data.data_refs`).
        placement: where the workers go.
        run: name under which they report progress.
        checkpoints: URI of the folder of the run.
        name: of the run in it; the same name resumes from its last checkpoint.

    Returns:
        The best checkpoint's content, and how the loop ended.

    Raises:
        StriateError: when it failed.
    """
    recipe, task = plan.recipe, plan.task(placement, run)
    low, high = placement.workers
    if placement.waits_for_nodes:
        os.environ.setdefault(*_AUTOSCALED_START)
        say(_WAITING, file=sys.stderr, flush=True)
    elif low < high:
        os.environ.setdefault(*_ELASTIC_START)
    for logger in ("ray.train", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    trainer = (TorchTrainer if placement.cluster else ray_internals.local_trainer())(
        train_loop,
        train_loop_config={"task": asdict(task), "refs": refs, "plugins": plugins.loaded()},
        torch_config=NodeTorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=high if low == high else (low, high),
            use_gpu=placement.gpu,
            resources_per_worker={"CPU": placement.worker_cpus, **({"GPU": 1} if placement.gpu else {})},
            # GPUs of one node talk to each other faster; workers on CPUs would share those of one while others idle.
            placement_strategy="PACK" if placement.gpu else "SPREAD",
        ),
        run_config=RunConfig(
            name=name,
            **_storage(checkpoints),
            worker_runtime_env={
                "env_vars": _KEPT_MEMORY | (_OWN_CPUS if plan.resident and not recipe.augment else _SHARED_CPUS)
            },
            failure_config=FailureConfig(max_failures=_MAX_FAILURES, controller_failure_limit=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=_KEPT, checkpoint_score_attribute="score", checkpoint_score_order="max"
            ),
        ),
    )
    log = mlflow_logger(
        storage.name_of(plan.out), {"out": plan.out, "recipe_digest": recipe.digest, **plan.described()}
    )
    try:
        result = _shown(trainer.fit, run, log)
    except TrainingFailedError as error:
        raise StriateError(_explained(error)) from error
    except RayError as error:
        raise StriateError(f"Ray could not train: {str(error).splitlines()[0]}; the same command resumes") from error
    finally:
        # Once all is shown: the last epoch ends together with the training.
        with contextlib.suppress(RayError, RuntimeError):
            status.clear(run)
    ended: Any = result.return_value
    if ended and "refused" in ended:
        raise StriateError(ended["refused"])
    if ended and ended["problem"] is not None:
        raise StriateError(_diverged(ended["problem"], checkpoints))
    best = result.get_best_checkpoint("score", "max") if result.best_checkpoints else None
    if best is None or not ended:
        raise StriateError("the training ended without a checkpoint; nothing was learned")
    known = [*(checkpoint for checkpoint, _ in result.best_checkpoints or ()), result.checkpoint]
    _remove_halves(storage.join(checkpoints, name), {storage.name_of(each.path) for each in known if each})
    return load_state(best, torch.device("cpu")), ended


def _remove_halves(run: str, known: set[str]) -> None:
    """Remove checkpoints that a kill cut while they were uploaded: Ray Train knows nothing of them."""
    for file in storage.list_files(run):
        folder = file.path.partition("/")[0]
        if folder.startswith(CHECKPOINT_PREFIX) and folder not in known:
            storage.remove([file.uri])
            storage.remove_empty_folder(storage.join(run, folder))


def _storage(checkpoints: str) -> dict[str, Any]:
    if not storage.is_remote(checkpoints):
        return {"storage_path": checkpoints}
    filesystem, path = stores.opened(checkpoints)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))}


def _explained(error: TrainingFailedError) -> str:
    """The worker's own words where there are any."""
    causes = getattr(error, "worker_failures", None) or {}
    first: BaseException = next(iter(causes.values()), error)
    while first.__cause__ is not None:
        first = first.__cause__
    lines = [line for line in str(first).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(first).__name__
    if not causes:
        return f"the training's workers did not start: {reason}"
    return f"training failed {_MAX_FAILURES + 1} times: {reason}"


def _diverged(problem: dict[str, Any], checkpoints: str) -> str:
    keys = problem["keys"]
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else "")
    return (
        f"the loss is {problem['loss']} at step {problem['step']} (learning rate {problem['learning_rate']:.3g}); the "
        f"pictures of that batch: {shown}. A lower optimizer.lr, a longer schedule.warmup_epochs or clip_grad usually "
        f"helps. The checkpoints before it stay in {checkpoints}"
    )


def _shown(fit: Callable[[], Result], run: str, log: Callable[[dict[str, Any]], None]) -> Result:
    """Shows how far `fit` is until it ends: a line an epoch, and a live one (or one every ten seconds) between them,
    on stderr; each epoch also to `log`.

    `fit` runs outside the main thread. In the main thread Ray Train would replace our handler of SIGINT by its own,
    which ends the process at Ctrl-C with exit code 0, as if the training had succeeded.
    """
    ended: Future[Result] = Future()
    stop = threading.Event()

    def run_fit() -> None:
        try:
            ended.set_result(fit())
        except BaseException as error:  # raised again in the main thread
            ended.set_exception(error)
        finally:
            stop.set()

    threading.Thread(target=run_fit, name="fit", daemon=True).start()
    _show(run, log, stop)
    return ended.result()


def _show(run: str, log: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
    console = Terminal(stderr=True)
    printed: set[str] = set()
    since_line = 0.0
    live = Live("starting the workers", console=console, auto_refresh=False, transient=True)
    with live if console.is_terminal else contextlib.nullcontext():
        while True:
            last = stop.is_set()
            with contextlib.suppress(RayError, RuntimeError):  # the head may be gone
                told = status.published(run)
                for name in sorted(told):
                    if name.startswith("epoch-") and name not in printed:
                        printed.add(name)
                        console.print(epoch_line(told[name]["ended"]), markup=False, soft_wrap=True)
                        log(told[name]["ended"])
                        since_line = 0.0
                now = told.get("now")
                if now is not None and console.is_terminal:
                    live.update(step_line(now), refresh=True)
                elif now is not None and since_line >= _LINE_EVERY_S:
                    console.print(step_line(now), markup=False, soft_wrap=True)
                    since_line = 0.0
            if last:
                return
            stop.wait(_LOOK_EVERY_S)
            since_line += _LOOK_EVERY_S


def step_line(now: dict[str, Any]) -> str:
    """`epoch 3, step 1,220/5,616 (22%): loss 0.1234, 8,231 pictures/s, lr 0.0012, data wait 2%, 41 s left`."""
    share = now["step"] / now["total"]
    left = now["spent_s"] / max(now["step"] - now["from_step"], 1) * (now["total"] - now["step"])
    return (
        f"epoch {now['epoch'] + 1}, step {now['step']:,}/{now['total']:,} ({share:.0%}): loss {now['loss']:.4f}, "
        f"{now['pictures_per_s']:,.0f} pictures/s, lr {now['lr']:.3g}, data wait {now['data_wait']:.0%}, "
        f"{duration(left)} left"
    )


def epoch_line(line: dict[str, Any]) -> str:
    """`epoch 3: train loss 0.0412, val loss 0.0389, top-1 98.74%, 12,345 pictures/s, data wait 1%, 5 s`."""
    val = f"val loss {line['val_loss']:.4f}, top-1 {line['val_top1']:.2%}, " if "val_loss" in line else ""
    return (
        f"epoch {line['epoch']}: train loss {line['train_loss']:.4f}, {val}{line['pictures_per_s']:,.0f} pictures/s, "
        f"data wait {line['data_wait']:.0%}, {duration(line['seconds'])}"
    )
