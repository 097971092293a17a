"""The folder that a training writes to: which training owns it, its files, and the progress of the training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from jobs.progress.display import duration
from jobs.train.checkpoint import remove_local_folders
from library import storage
from library.bundle.description import BUNDLE
from library.dataset.lease import LEASES
from library.errors import StriateError, UsageError
from library.recipe.yaml_text import load_yaml
from library.steps.plugins import RECORDED, recorded
from library.training.progress import METRICS, read_metrics

CHECKPOINTS = "checkpoints"
FEATURES = "features"
LOGS = "logs"
_RECORD = "train.json"
# All that a training writes below its folder; nothing else is ever removed.
_WRITTEN = (_RECORD, BUNDLE, "model.safetensors", f"{LOGS}/", f"{CHECKPOINTS}/", f"{FEATURES}/")


@dataclass(frozen=True)
class RunRecord:
    """Identifies the training that owns a folder; stored there as train.json.

    Attributes:
        recipe: digest of the recipe.
        datasets: digests of the datasets, by role (`train`, `val`).
        recipe_text: the recipe as YAML.
        plugins: digests of the plugins that its pipelines use, by name.
        versions: of Striate and PyTorch where it began. Another version may resume it, so they are not compared.
    """

    recipe: str
    datasets: Mapping[str, str]
    recipe_text: str = ""
    plugins: Mapping[str, str] = field(default_factory=dict[str, str])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    def is_same(self, other: RunRecord) -> bool:
        """Whether both are the same training."""
        return (self.recipe, self.datasets, self.plugins) == (other.recipe, other.datasets, other.plugins)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of train.json."""
        return {
            "recipe": self.recipe,
            "datasets": dict(self.datasets),
            "recipe_text": self.recipe_text,
            "versions": dict(self.versions),
            **recorded(self.plugins),
        }


def training_versions() -> dict[str, str]:
    """The versions of Striate and PyTorch, which decide what a training gives."""
    return {name: version(name) for name in ("striate", "torch")}


def is_finished(out: str, record: RunRecord, *, overwrite: bool) -> bool:
    """Whether this training has finished in `out` before. Changes nothing.

    Raises:
        UsageError: when the folder contains other files, or another training that is not to be overwritten.
    """
    owner = read_record(out)
    files = [file.path for file in storage.list_files(out)]
    others = [path for path in files if not path.startswith(f"{LEASES}/") and not _is_temporary(path)]
    if others and owner is None:
        raise UsageError(f"{out} contains other files ({others[0]}); choose another folder")
    if owner is not None and not owner.is_same(record) and not overwrite:
        raise UsageError(
            f"{out} contains a training with another recipe, other data or another plugin; choose another folder, or "
            "use --overwrite"
        )
    return owner is not None and owner.is_same(record) and not overwrite and _has_bundle(out)


def claim(out: str, record: RunRecord, *, overwrite: bool) -> None:
    """Makes `out` the folder of this training; an unfinished run of the same training stays and is resumed."""
    remove_temporaries(out)
    owner = read_record(out)
    if owner is not None and owner.is_same(record) and not (overwrite and _has_bundle(out)):
        return
    remove_training(out)
    storage.write_bytes(storage.join(out, _RECORD), (json.dumps(record.to_dict(), indent=1) + "\n").encode())


def remove_training(out: str) -> None:
    """Removes all that a training has written below `out`, and nothing else."""
    files = [file for file in storage.list_files(out) if file.path.startswith(_WRITTEN)]
    # The record last: without it, files that a kill leaves here would look like those of something else.
    storage.remove(file.uri for file in sorted(files, key=lambda file: file.path == _RECORD))


def remove_temporaries(out: str) -> None:
    """Removes partly written files that a killed training has left, below `out` and on this machine."""
    if read_record(out) is not None:
        storage.remove(file.uri for file in storage.list_files(out) if _is_temporary(file.path))
    remove_local_folders(out)


def read_record(out: str) -> RunRecord | None:
    """Returns the record of the training that owns `out`; None if there is none.

    Raises:
        StriateError: when the record is damaged.
    """
    path = storage.join(out, _RECORD)
    if not storage.exists(path):
        return None
    try:
        values = json.loads(storage.read_bytes(path))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise StriateError(f"{path} is damaged: {error}; remove it, or choose another folder") from None
    text, plugins, versions = values.get("recipe_text", ""), values.get(RECORDED, {}), values.get("versions", {})
    return RunRecord(values.get("recipe", ""), values.get("datasets", {}), text, plugins, versions)


def describe_run(out: str) -> dict[str, Any] | None:
    """Returns the progress of the training that writes to `out`, read from its files; None if there is no training."""
    out = storage.normalize(out)
    record = read_record(out)
    if record is None:
        return None
    # Not as a `Recipe`, whose steps may need a plugin.
    recipe, logs = load_yaml(record.recipe_text), storage.join(out, LOGS)
    steps, epochs = (recipe.get(name) if isinstance(recipe, dict) else None for name in ("steps", "epochs"))
    if not isinstance(steps or epochs, int | float):
        raise StriateError(f"{storage.join(out, _RECORD)} is damaged: its recipe has neither epochs nor steps")
    written = [file.modified for file in storage.list_files(logs) if file.path == METRICS]
    lines = read_metrics(logs)
    last = lines[-1] if lines else {"epoch": 0, "step": 0}
    done, goal = (last["step"], steps) if steps is not None else (last["epoch"], epochs)
    return {
        "training": out,
        "run_id": storage.uri_id(out),
        "finished": _has_bundle(out),
        "epochs" if steps is None else "steps": f"{done:,} of {goal:,.9g}",
        **(
            {"last_epoch": last, "last_epoch_ended": f"{duration(max(0.0, time.time() - written[0]))} ago"}
            if lines
            else {}
        ),
    }


def _is_temporary(path: str) -> bool:
    return storage.name_of(path).startswith(storage.TEMPORARY_PREFIX)


def _has_bundle(out: str) -> bool:
    return storage.exists(storage.join(out, BUNDLE))
