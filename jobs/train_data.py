"""What a training learns from, put into Ray's object store: pictures, features, or rows to be streamed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cluster.session import Session
from jobs.output import stderr
from jobs.train_claim import FEATURES
from library import storage
from library.errors import StriateError
from library.inputs import InputPipeline
from library.manifest import digest_of
from library.training.resident import Resident, decode_rows
from library.training.rows import Rows, rejected_text

if TYPE_CHECKING:
    from jobs.train import TrainPlan

# So much is decoded in this process, for so long at most: until then actors for it would hardly be up.
_DECODED_HERE_BYTES = 16 * 2**20
_DECODED_HERE_S = 2.0


def data_refs(plan: TrainPlan, session: Session) -> dict[str, Any]:
    """By role, a list with one reference.

    Raises:
        StriateError: when no picture can be used, or none of some class.
    """
    import ray

    refs: dict[str, Any] = {}
    for role, rows in (("train", plan.train), ("val", plan.val)):
        if rows is None:
            continue
        value: Any = rows
        if plan.recipe.cache_features:
            value = _features(plan, role, rows, session)
        elif plan.resident:
            fitted = role == "val" or plan.recipe.augment is None
            value = _decoded(rows, plan.inputs, session, fitted=fitted, title=f"decode {role}")
        if isinstance(value, Resident):
            value.check_classes(rows.dataset, rows.classes)
        if isinstance(value, Resident) and value.rejected:
            total = sum(value.rejected.values())
            told = rejected_text(value.rejected)
            stderr.print(f"{rows.dataset}: {total:,} pictures cannot be used: {told}", markup=False)
        refs[role] = [ray.put(value)]
    return refs


def _decoded(rows: Rows, inputs: InputPipeline, session: Session, *, fitted: bool, title: str) -> Resident:
    """All rows decoded, shard by shard: few of them here, and what is left on Ray."""
    from jobs.decoder import Decoder
    from jobs.worker_pool import WorkerPool

    shards = sorted(set(rows.shard.tolist()))
    parts: dict[int, Resident] = {}
    end = time.monotonic() + _DECODED_HERE_S * (rows.picture_bytes * len(rows) <= _DECODED_HERE_BYTES)
    for shard in shards:
        if time.monotonic() >= end:
            break
        parts[shard] = decode_rows(rows, shard, inputs, fitted=fitted)
    left = [shard for shard in shards if shard not in parts]
    if left:
        pool: WorkerPool[int] = WorkerPool(
            Decoder, (rows, inputs, fitted), min(max(1, session.present_cpus), len(left))
        )
        try:
            parts |= dict(pool.run(left))
        finally:
            pool.stop()
    data = Resident.joined([parts[shard] for shard in shards])
    if not len(data):
        raise StriateError(f"{title}: no picture of {rows.dataset} can be used: {rejected_text(data.rejected)}")
    return data


def _features(plan: TrainPlan, role: str, rows: Rows, session: Session) -> Resident:
    """What the frozen backbone makes of the pictures; kept beside the run, computed once."""
    from jobs.features import cached_features
    from library.models.weights import weights_digest

    recipe = plan.recipe
    copies = recipe.copies if role == "train" and recipe.augment is not None else None
    known = {
        "model": recipe.model,
        "weights": [recipe.weights, weights_digest(recipe.weights)],
        "precision": recipe.precision,
        "seed": recipe.seed,
        "dataset": plan.datasets,
        "fraction": recipe.data.val_fraction,
        "classes": rows.classes,
        "inputs": [str(plan.inputs.steps), str(plan.inputs.fit), plan.inputs.size],
        "augment": recipe.augment if copies else None,
        "copies": copies,
    }
    uri = storage.join(plan.out, FEATURES, f"{role}-{digest_of(known)[:16]}.npz")
    return cached_features(uri, rows, plan.inputs, plan.located, session, copies=copies, title=f"features of {role}")
