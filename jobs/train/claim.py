"""Whose folder it is that a training writes to: made this training's own before anything is written there."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jobs.train.plan import TrainPlan
from library import storage
from library.bundle.description import BUNDLE
from library.dataset.lease import LEASES
from library.errors import StriateError, UsageError
from library.steps.plugins import RECORDED, recorded

CHECKPOINTS = "checkpoints"
FEATURES = "features"
_CLAIM = "train.json"
# All that a training writes below `out`; nothing else there is ever removed.
_OURS = (_CLAIM, BUNDLE, "model.safetensors", "logs/", f"{CHECKPOINTS}/", f"{FEATURES}/")


def check_claim(plan: TrainPlan) -> bool:
    """Whether this training is done already; refuses what belongs to another. Changes nothing."""
    for rows in (plan.train, plan.val):
        if rows is not None and (storage.contains(plan.out, rows.dataset) or storage.contains(rows.dataset, plan.out)):
            raise UsageError(
                f"--out {plan.out} and the dataset {rows.dataset} lie in one another; choose another folder"
            )
    held = claimed(plan.out)
    files = [file.path for file in storage.list_files(plan.out)]
    there = [path for path in files if not path.startswith(f"{LEASES}/") and not _is_temporary(path)]
    if there and held is None:
        raise UsageError(f"{plan.out} holds something else ({there[0]}); choose another folder")
    if held is not None and not _is_same(held, plan) and not plan.overwrite:
        raise UsageError(
            f"{plan.out} was trained with another recipe, other data or another plugin; choose another folder, or "
            "--overwrite it"
        )
    return held is not None and _is_same(held, plan) and not plan.overwrite and _has_bundle(plan.out)


def claim(plan: TrainPlan) -> None:
    """Make `out` this training's; one that was begun and is not finished goes on."""
    remove_temporaries(plan.out)
    held = claimed(plan.out)
    if held is not None and _is_same(held, plan) and not (plan.overwrite and _has_bundle(plan.out)):
        return
    text = {"recipe": plan.recipe.digest, "datasets": plan.datasets, "recipe_text": plan.recipe.dump()}
    text |= recorded(plan.plugins)
    # The claim is written last: killed before it, the same command with --overwrite begins to remove again.
    storage.remove(file.uri for file in storage.list_files(plan.out) if file.path.startswith(_OURS))
    storage.write_bytes(storage.join(plan.out, _CLAIM), (json.dumps(text, indent=1) + "\n").encode())


def remove_temporaries(out: str) -> None:
    """Remove what a kill has left of files that were being written: below `out`, and on this machine."""
    if claimed(out) is not None:
        storage.remove(file.uri for file in storage.list_files(out) if _is_temporary(file.path))
    remove_local_checkpoints(out)


def local_checkpoint(out: str) -> str:
    """A new folder on this machine, in which a checkpoint is written before it is uploaded."""
    return tempfile.mkdtemp(prefix=_local_prefix(out))


def remove_local_checkpoints(out: str) -> None:
    """Remove the folders of `local_checkpoint` on this machine; one training at a time writes to `out`."""
    for folder in local_checkpoints(out):
        shutil.rmtree(folder, ignore_errors=True)


def local_checkpoints(out: str) -> list[Path]:
    """The folders of `local_checkpoint` on this machine."""
    return list(Path(tempfile.gettempdir()).glob(f"{_local_prefix(out)}*"))


def _local_prefix(out: str) -> str:
    return f"striate-checkpoint-{hashlib.sha256(out.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}-"


def _is_temporary(path: str) -> bool:
    return storage.name_of(path).startswith(storage.TEMPORARY_PREFIX)


def claimed(out: str) -> dict[str, Any] | None:
    """What the training that `out` belongs to has put on record; None where it belongs to none."""
    path = storage.join(out, _CLAIM)
    if not storage.exists(path):
        return None
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise StriateError(f"{path} is damaged: {error}; remove it, or choose another folder") from None


def _is_same(held: dict[str, Any], plan: TrainPlan) -> bool:
    now = {"recipe": plan.recipe.digest, "datasets": plan.datasets, RECORDED: plan.plugins}
    return now == {name: held.get(name, {}) for name in now}


def _has_bundle(out: str) -> bool:
    return storage.exists(storage.join(out, BUNDLE))
