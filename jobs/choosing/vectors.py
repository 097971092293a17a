"""Feature vectors of datasets, computed on Ray once and kept beside each dataset, in `_features/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.machine import memory_bytes
from jobs.shards.dataset_job import ShardPlan, make_shards, shard_tasks
from jobs.shards.pool_size import WorkerPool
from library import storage
from library.choosing.labels.embedders import BundleEmbedder, Embedder, ModelEmbedder, PatchEmbedder
from library.choosing.labels.patch_features import SAMPLE_PICTURES, PatchFilters, patch_inputs
from library.dataset.destination import remove_uncommitted
from library.dataset.lease import hold
from library.dataset.manifest import FEATURES, Job, Manifest, digest_of, find_manifest, load_manifest
from library.dataset.shards import ShardReader, batches
from library.errors import BadPicture, StriateError, UsageError
from library.steps.plugins import Plugin
from library.work.embed_shard import KEY, LABEL, VECTOR, EmbedJob, SiftJob

#: Instead of a model: features that need no trained network.
PATCHES = "patches"
#: Vectors are in memory so many times at most, while a linear head is fitted: those of all pictures, of the labelled
#: ones, and of those that one head is fitted on. Before that, twice: as read, and joined.
_COPIES = 3
#: So many numbers of 4 bytes for each picture and class: probabilities, those of a fold, and errors of predictions.
_CLASS_NUMBERS = 3
_SAMPLE_BATCH = 64


@dataclass(frozen=True)
class Vectors:
    """A vector of each usable picture of a dataset, in stored order.

    Attributes:
        keys: N keys.
        labels: N labels, None where there is none.
        values: N x D.
        unused: pictures without a vector, by reason.
    """

    keys: Sequence[str]
    labels: Sequence[str | None]
    values: NDArray[np.float32]
    unused: Mapping[str, int] = field(default_factory=dict[str, int])


def plan_embedder(bundle: str | None, model: str | None, dataset: str) -> Embedder | None:
    """Returns what computes the vectors; None where neither a bundle nor a model is named.

    Args:
        bundle: URI of a bundle.
        model: a model's call, or `patches`.
        dataset: URI of the dataset from whose first pictures patches are cut.

    Raises:
        UsageError: both are named, or one that has no features.
    """
    if bundle is not None and model is not None:
        raise UsageError("--bundle and --model both say what computes features; use only one of them")
    if bundle is not None:
        return BundleEmbedder.of(bundle)
    if model is None:
        return None
    return patches_of(dataset) if model == PATCHES else ModelEmbedder.of(model)


def uses_no_network(bundle: str | None, recipe: str | None, model: str | None) -> bool:
    """Returns whether vectors, if any, are patches, so that neither a GPU nor a bundle's plugins have an effect."""
    return bundle is None and recipe is None and model in (None, PATCHES)


def patches_of(dataset: str) -> PatchEmbedder:
    """Learns patches from the first pictures of a dataset.

    Raises:
        UsageError: none of them can be decoded.
    """
    manifest = load_manifest(dataset)
    channels = 1 if set(manifest.tally.channels) == {"1"} else 3
    inputs, pictures = patch_inputs(channels), list[NDArray[np.uint8]]()
    for shard in manifest.shards:
        for table in batches(ShardReader(storage.join(dataset, shard.name), SAMPLE_PICTURES), _SAMPLE_BATCH):
            for record in table.to_pylist():
                try:
                    pixels = inputs.prepare(record["image"]["bytes"] or b"", key=record[KEY])
                except BadPicture:
                    continue
                if pixels.dtype == np.uint8:
                    pictures.append(pixels)
            if len(pictures) >= SAMPLE_PICTURES:
                return PatchEmbedder(PatchFilters.learn(pictures), channels, manifest.digest)
    if not pictures:
        raise UsageError(f"no picture of {dataset} can be decoded as 8 bits; name a --bundle")
    return PatchEmbedder(PatchFilters.learn(pictures), channels, manifest.digest)


@dataclass(frozen=True)
class Judging:
    """For what vectors are computed, which decides how much memory they need.

    Attributes:
        pictures: of all datasets whose vectors are in memory together.
        classes: of the linear head that is fitted on them; 0 for none.
    """

    pictures: int
    classes: int

    @classmethod
    def of(cls, manifests: Iterable[Manifest]) -> Judging:
        """A linear head on all pictures of some datasets."""
        each = list(manifests)
        return cls(sum(one.rows for one in each), len({name for one in each for name in one.tally.classes}))


def ensure_vectors(dataset: str, manifest: Manifest, embedder: Embedder, pool: WorkerPool, judging: Judging) -> Vectors:
    """Returns the vectors of a dataset; computes those that are missing first, on the connected Ray.

    Args:
        dataset: URI.
        manifest: of the dataset.
        embedder: what computes them.
        pool: the workers.
        judging: for what they are computed.

    Raises:
        StriateError: when a shard fails, or the vectors do not fit into memory; finished ones are kept.
    """
    job = EmbedJob(dataset, embedder, pool.device, pool.cpus)
    tables, unused = ensure_side_shards(
        "features", dataset, manifest, list(embedder.identity), job, pool, embedder.used_plugins, judging
    )
    filled = [table for table in tables if table.num_rows]
    if not filled:
        raise StriateError(f"no picture of {dataset} can be used: {', '.join(unused) or 'it is empty'}")
    parts: list[NDArray[np.float32]] = []
    for table in filled:
        column: Any = table[VECTOR].combine_chunks()
        parts.append(column.flatten().to_numpy().reshape(table.num_rows, -1))
    keys = [key for table in filled for key in table[KEY].to_pylist()]
    labels = [label for table in filled for label in table[LABEL].to_pylist()]
    return Vectors(keys, labels, np.concatenate(parts), unused)


def ensure_side_shards(
    kind: Literal["features", "sift"],
    dataset: str,
    manifest: Manifest,
    identity: Sequence[Any],
    work: EmbedJob | SiftJob,
    pool: WorkerPool,
    used_plugins: Sequence[Plugin],
    judging: Judging | None = None,
) -> tuple[list[pa.Table], dict[str, int]]:
    """Runs a job over a dataset whose results are small tables beside it, and reads them; resumes a killed run.

    Args:
        kind: of the job.
        dataset: URI.
        manifest: of the dataset.
        identity: what decides the results; its digest names their folder.
        work: writes the table of a shard.
        pool: the workers.
        used_plugins: the plugins whose steps run.
        judging: for what vectors are computed; None where there are no vectors.

    Returns:
        The table of each shard, and the pictures that are in none by reason.
    """
    digest = digest_of([kind, *identity])
    folder = storage.join(dataset, FEATURES, digest[:16])
    job = Job(kind=kind, source=dataset, source_digest=manifest.digest, options={"identity": digest})
    tasks = shard_tasks(manifest, folder, None) if manifest.shards else []
    plan = ShardPlan(dataset, folder, (job,), tasks, work, {}, used_plugins=used_plugins)
    with hold(folder, tidy=remove_uncommitted):
        tally = make_shards(kind, plan, pool).tally
    remove_outdated(dataset, manifest)
    unused = {**tally.dropped, **tally.rejected}
    tables: list[pa.Table] = []
    for task in tasks:
        tables.append(_read(storage.join(folder, f"{task.stem}.parquet")))
        if judging is not None:
            check_memory(dataset, tables, judging, memory_bytes())
    return tables, unused


def check_memory(dataset: str, tables: Sequence[pa.Table], judging: Judging, memory: int) -> None:
    """Refuses datasets whose vectors do not fit into memory, as soon as the first ones are read.

    Args:
        dataset: URI of the one that is read, an example for the message.
        tables: those that are read.
        judging: for what they are read.
        memory: of this machine, in bytes.

    Raises:
        StriateError: names the memory that is needed; the vectors that were computed stay beside the dataset.
    """
    rows = sum(table.num_rows for table in tables)
    each = _COPIES * sum(table.nbytes for table in tables) / max(1, rows) + _CLASS_NUMBERS * 4 * judging.classes
    needed = judging.pictures * each
    if needed > memory:
        raise StriateError(
            f"the vectors of all splits ({judging.pictures:,} pictures) need about {needed / 1e9:.1f} GB, and this "
            f"machine has {memory / 1e9:.1f} GB; run the command on a part of each split: striate filter {dataset} "
            "PART --steps 'sample(0.1)'"
        )


def remove_outdated(dataset: str, manifest: Manifest) -> None:
    """Removes finished results in `_features/` that were made from earlier pictures of the dataset.

    Those of patches, which are learned from the pictures, could never be used again.
    """
    features = storage.join(dataset, FEATURES)
    files = storage.list_files(features)
    for name in sorted({file.path.partition("/")[0] for file in files}):
        made = find_manifest(storage.join(features, name))
        if made is not None and made.complete and made.job.source_digest != manifest.digest:
            old = [file for file in files if file.path.startswith(f"{name}/")]
            storage.remove(file.uri for file in old)
            for folder in sorted({file.path.rpartition("/")[0] for file in old} | {name}, reverse=True):
                storage.remove_empty_folder(storage.join(features, folder))


def _read(uri: str) -> pa.Table:
    try:
        with storage.open_read(uri) as file:
            # Arrow's own threads may still hold a Python file when the interpreter ends (see ShardReader).
            return pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise StriateError(f"{uri} is damaged: {error}; remove it and run the command again") from error
