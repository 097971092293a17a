"""Epochs told to MLflow, where it is installed and MLFLOW_TRACKING_URI says where to."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any


def mlflow_logger(name: str, parameters: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    """A function that takes the metrics of an epoch; it does nothing where MLflow is not installed or not configured.

    Args:
        name: of the run in MLflow.
        parameters: logged once, as text.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") or importlib.util.find_spec("mlflow") is None:
        return lambda line: None
    mlflow: Any = importlib.import_module("mlflow")
    client = mlflow.MlflowClient()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "striate")
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found is not None else client.create_experiment(experiment)
    run = client.create_run(number, run_name=name).info.run_id
    for key, value in parameters.items():
        client.log_param(run, key, str(value)[:500])

    def log(line: Mapping[str, Any]) -> None:
        for key, value in line.items():
            client.log_metric(run, key, float(value), step=int(line["epoch"]))

    return log
