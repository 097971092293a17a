"""What a training learns from, put into Ray's object store: pictures, features, or rows to be streamed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.connection.session import Session
from jobs.output import stderr
from jobs.train.claim import FEATURES
from jobs.train.plan import TrainPlan
from library import storage
from library.bundle.description import weights_digest
from library.dataset.manifest import digest_of
from library.errors import StriateError
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.steps.plugins import recorded
from library.training.in_memory import PackedPictures, decode_rows
from library.training.rows import Part, Rows, read_part, rejected_text
from library.training.sampling import small_parts

# So much is decoded in this process, for so long at most: until then actors for it would hardly be up.
_DECODED_HERE_BYTES = 16 * 2**20
_DECODED_HERE_S = 2.0


def data_refs(plan: TrainPlan, session: Session) -> dict[str, Any]:
    """By role, a list with one reference; and after it one to each shard's table, where these are held encoded.

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
            value = _decoded(rows, plan.inputs, session, fitted=fitted)
        if isinstance(value, PackedPictures):
            value.check_classes(rows.dataset, rows.classes)
        if isinstance(value, PackedPictures) and value.rejected:
            total = sum(value.rejected.values())
            reasons = rejected_text(value.rejected)
            stderr.print(f"{rows.dataset}: {total:,} pictures cannot be used: {reasons}", markup=False)
        refs[role] = [ray.put(value)]
        if isinstance(value, Rows) and _fits_encoded(rows, plan.recipe):
            refs[role] += _encoded(refs[role][0], rows, plan.inputs)
    return refs


def _fits_encoded(rows: Rows, recipe: Recipe) -> bool:
    """Whether what is stored is fetched once. Files on a disk are kept by the system's own cache."""
    most = recipe.data.max_resident_mb * 2**20
    return storage.is_remote(rows.dataset) and rows.picture_bytes * len(rows) <= most


def _encoded(rows_ref: Any, rows: Rows, inputs: InputPipeline) -> list[Any]:
    """A reference to the rows of each shard as they are stored; None where none is used."""
    import ray

    read: Any = ray.remote(num_returns=2)(_table_and_rows)
    pairs = [
        read.remote(rows_ref, (shard, 0, count), inputs.columns) if count else (None, None)
        for shard, count in enumerate(rows.counts.tolist())
    ]
    # Reading ends before decoders take the CPUs that it needs, and what cannot be read is reported here.
    ray.get([count for _, count in pairs if count is not None])
    return [table for table, _ in pairs]


def _table_and_rows(rows: Rows, part: Part, columns: Sequence[str]) -> tuple[Any, int]:
    table = read_part(rows, part, columns)
    return table, table.num_rows


def _decoded(rows: Rows, inputs: InputPipeline, session: Session, *, fitted: bool) -> PackedPictures:
    """All rows decoded: few of them here, and what is left on Ray."""
    from jobs.feed.decoder import Decoder, residents

    workers = max(1, session.cpus)
    parts = small_parts(rows, workers)
    done: list[PackedPictures] = []
    end = time.monotonic() + _DECODED_HERE_S * (rows.picture_bytes * len(rows) <= _DECODED_HERE_BYTES)
    while len(done) < len(parts) and time.monotonic() < end:
        done.append(decode_rows(rows, parts[len(done)], inputs, fitted=fitted))
    if len(done) < len(parts):
        done += residents(Decoder, (rows, inputs, fitted), parts[len(done) :], workers)
    data = PackedPictures.concatenate(done)
    if not len(data):
        raise StriateError(f"no picture of {rows.dataset} can be used: {rejected_text(data.rejected)}")
    return data


def _features(plan: TrainPlan, role: str, rows: Rows, session: Session) -> PackedPictures:
    """What the frozen backbone makes of the pictures; kept beside the run, computed once."""
    from jobs.train.features import cached_features

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
    } | recorded(plan.plugins)
    uri = storage.join(plan.out, FEATURES, f"{role}-{digest_of(known)[:16]}.npz")
    return cached_features(uri, rows, plan.inputs, plan.located, session, copies=copies)
