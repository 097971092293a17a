"""How far a training is, from what it has left at its destination: `striate info`."""

from __future__ import annotations

import time
from typing import Any

from jobs.progress.display import duration
from jobs.train.claim import claimed
from library import storage
from library.bundle.description import BUNDLE
from library.recipe import Recipe
from library.training.progress import METRICS, read_metrics


def training_at(out: str) -> dict[str, Any] | None:
    """What is known of the training that writes to `out`, whoever runs it; None where none does."""
    out = storage.normalize(out)
    claim = claimed(out)
    if claim is None:
        return None
    recipe, logs = Recipe.parse(claim["recipe_text"]), storage.join(out, "logs")
    written = [file.modified for file in storage.list_files(logs) if file.path == METRICS]
    lines = read_metrics(logs)
    last = lines[-1] if lines else {"epoch": 0, "step": 0}
    done, goal = (last["step"], recipe.steps) if recipe.steps is not None else (last["epoch"], recipe.epochs)
    return {
        "training": out,
        "run_id": storage.uri_id(out),
        "finished": storage.exists(storage.join(out, BUNDLE)),
        "epochs" if recipe.steps is None else "steps": f"{done:,} of {goal:,.9g}",
        **(
            {"last_epoch": last, "last_epoch_ended": f"{duration(max(0.0, time.time() - written[0]))} ago"}
            if lines
            else {}
        ),
    }
