"""Whose folder it is that a training writes to: made this training's own before anything is written there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from library import storage
from library.bundle_record import BUNDLE
from library.errors import UsageError

if TYPE_CHECKING:
    from jobs.train import TrainPlan

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
    there = [file.path for file in storage.list_files(plan.out)]
    if there and held is None:
        raise UsageError(f"{plan.out} holds something else ({there[0]}); choose another folder")
    if held is not None and not _is_same(held, plan) and not plan.overwrite:
        raise UsageError(
            f"{plan.out} was trained with another recipe or other data; choose another folder, or --overwrite it"
        )
    return held is not None and _is_same(held, plan) and not plan.overwrite and _has_bundle(plan.out)


def claim(plan: TrainPlan) -> None:
    """Make `out` this training's; one that was begun and is not finished goes on."""
    held = claimed(plan.out)
    if held is not None and _is_same(held, plan) and not (plan.overwrite and _has_bundle(plan.out)):
        return
    text = {"recipe": plan.recipe.digest, "datasets": plan.datasets, "recipe_text": plan.recipe.dump()}
    # The claim is written last: killed before it, the same command with --overwrite begins to remove again.
    storage.remove(file.uri for file in storage.list_files(plan.out) if file.path.startswith(_OURS))
    storage.write_bytes(storage.join(plan.out, _CLAIM), (json.dumps(text, indent=1) + "\n").encode())


def claimed(out: str) -> dict[str, Any] | None:
    """What the training that `out` belongs to has put on record; None where it belongs to none."""
    path = storage.join(out, _CLAIM)
    return json.loads(storage.read_bytes(path)) if storage.exists(path) else None


def _is_same(held: dict[str, Any], plan: TrainPlan) -> bool:
    return (held.get("recipe"), held.get("datasets")) == (plan.recipe.digest, plan.datasets)


def _has_bundle(out: str) -> bool:
    return storage.exists(storage.join(out, BUNDLE))
