"""Shows a running training on the terminal, and logs its epochs to MLflow."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from ray.exceptions import RayError
from ray.train import Result
from rich.live import Live

from cluster.console import Terminal
from jobs.progress import status
from jobs.progress.display import duration
from library.training.progress import EpochReport, StepReport

#: Workers publish a `StepReport` under this name, an `EpochReport` under names that begin with the first prefix, and
#: lines of text (`line`) under names that begin with the second one.
STEP_KEY, EPOCH_KEY_PREFIX, NOTE_KEY_PREFIX = "now", "epoch-", "note-"

_LINE_EVERY_S = 10.0
_POLL_EVERY_S = 0.5


def report_while(fit: Callable[[], Result], run: str, log: Callable[[EpochReport], None]) -> Result:
    """Calls `fit` and shows its progress on stderr: a line for each epoch, and between them a live line on a terminal
    or a line every ten seconds elsewhere. Each epoch is also passed to `log`.

    `fit` runs outside the main thread. In the main thread Ray Train would replace our handler of SIGINT by its own,
    which ends the process at Ctrl-C with exit code 0, as if the training had succeeded.
    """
    result: Future[Result] = Future()
    stop = threading.Event()

    def run_fit() -> None:
        try:
            result.set_result(fit())
        except BaseException as error:  # raised again in the main thread
            result.set_exception(error)
        finally:
            stop.set()

    threading.Thread(target=run_fit, name="fit", daemon=True).start()
    _show(run, log, stop)
    return result.result()


def _show(run: str, log: Callable[[EpochReport], None], stop: threading.Event) -> None:
    console = Terminal(stderr=True)
    printed: set[str] = set()
    since_line = 0.0
    live = Live("starting the workers", console=console, auto_refresh=False, transient=True)
    with live if console.is_terminal else contextlib.nullcontext():
        while True:
            is_last = stop.is_set()
            with contextlib.suppress(RayError, RuntimeError):  # the head may be lost
                published = status.published(run)
                for name in sorted(published):
                    if name.startswith(NOTE_KEY_PREFIX) and name not in printed:
                        printed.add(name)
                        console.print(published[name]["line"], markup=False, soft_wrap=True)
                    if name.startswith(EPOCH_KEY_PREFIX) and name not in printed:
                        printed.add(name)
                        epoch = EpochReport.from_dict(published[name])
                        console.print(epoch_line(epoch), markup=False, soft_wrap=True)
                        log(epoch)
                        since_line = 0.0
                steps = StepReport(**published[STEP_KEY]) if STEP_KEY in published else None
                if steps is not None and console.is_terminal:
                    live.update(step_line(steps), refresh=True)
                elif steps is not None and since_line >= _LINE_EVERY_S:
                    console.print(step_line(steps), markup=False, soft_wrap=True)
                    since_line = 0.0
            if is_last:
                return
            stop.wait(_POLL_EVERY_S)
            since_line += _POLL_EVERY_S


def step_line(report: StepReport) -> str:
    """Returns `epoch 3, step 1,220/5,616 (22%): loss 0.1234, 8,231 pictures/s, lr 0.0012, data wait 2%, 41 s left`."""
    remaining = report.total_steps - report.step
    left = report.seconds / max(report.step - report.first_step, 1) * remaining
    return (
        f"epoch {report.epoch + 1}, step {report.step:,}/{report.total_steps:,} "
        f"({report.step / report.total_steps:.0%}): loss {report.loss:.4f}, {report.pictures_per_s:,.0f} pictures/s, "
        f"lr {report.lr:.3g}, data wait {report.data_wait:.0%}, {duration(left)} left"
    )


def epoch_line(report: EpochReport) -> str:
    """Returns `epoch 3: train loss 0.0412, val loss 0.0389, top-1 98.74%, 12,345 pictures/s, data wait 1%, 5 s`."""
    metrics = report.metrics
    val = ""
    if "val_loss" in metrics:
        score = f"F1 {metrics['val_f1']:.2%}" if "val_f1" in metrics else f"top-1 {metrics['val_top1']:.2%}"
        val = f"val loss {metrics['val_loss']:.4f}, {score}, "
    return (
        f"epoch {report.epoch}: train loss {metrics['train_loss']:.4f}, {val}"
        f"{metrics['pictures_per_s']:,.0f} pictures/s, data wait {metrics['data_wait']:.0%}, "
        f"{duration(metrics['seconds'])}"
    )


def mlflow_logger(name: str, parameters: Mapping[str, Any]) -> Callable[[EpochReport], None]:
    """Returns a function that logs an epoch to MLflow, or does nothing without MLflow or MLFLOW_TRACKING_URI.

    Args:
        name: name of the run in MLflow.
        parameters: logged once, as text.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") or importlib.util.find_spec("mlflow") is None:
        return lambda report: None
    mlflow: Any = importlib.import_module("mlflow")
    client = mlflow.MlflowClient()
    experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "striate")
    experiment = client.get_experiment_by_name(experiment_name)
    experiment_id = experiment.experiment_id if experiment is not None else client.create_experiment(experiment_name)
    run = client.create_run(experiment_id, run_name=name).info.run_id
    for key, value in parameters.items():
        client.log_param(run, key, str(value)[:500])

    def log(report: EpochReport) -> None:
        for key, value in report.to_dict().items():
            client.log_metric(run, key, float(value), step=report.epoch)

    return log
