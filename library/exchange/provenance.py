"""Datasets, bundles and exports below some folders, and what connects them: digests, histories and keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pydantic

from library import storage
from library.bundle.description import BUNDLE, MEMBERS, BundleRecord
from library.dataset.manifest import MANIFEST, FileEntry, Job, Manifest, find_manifest
from library.dataset.shards import ShardReader
from library.errors import StriateError
from library.exchange.exports import RECORD, STATE, ExportRecord, find_record
from library.exchange.merging import name_prefixes

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

_MEMBER = re.compile(rf"/{MEMBERS}/\d+$")
_PARALLEL_READS = 8


@dataclass(frozen=True)
class Use:
    """A bundle that was trained or validated on a dataset, or began with the weights of such a bundle.

    Attributes:
        bundle: URI of the bundle.
        bundle_id: its id; of an ensemble's member where that was trained on it.
        role: train or val; or weights.
        dataset: URI that the dataset had then; for weights, that the bundle had which gave them.
        digest: digest that the dataset had then; for weights, the id of that bundle.
    """

    bundle: str
    bundle_id: str
    role: str
    dataset: str
    digest: str


@dataclass
class Catalogue:
    """What lies below some folders, by URI.

    Attributes:
        datasets: finished datasets.
        bundles: bundles, also the members of ensembles.
        exports: folders that `striate convert` has finished.
        problems: sentences about what could not be read.
    """

    datasets: dict[str, Manifest] = field(default_factory=dict[str, Manifest])
    bundles: dict[str, BundleRecord] = field(default_factory=dict[str, BundleRecord])
    exports: dict[str, ExportRecord] = field(default_factory=dict[str, ExportRecord])
    problems: list[str] = field(default_factory=list[str])

    def uses(self, digests: Collection[str]) -> list[Use]:
        """Returns the bundles that were trained or validated on datasets with these digests, by URI.

        After them come the bundles that began with the weights of one of these, and so on.
        """
        trained = [use for uri, record in self.bundles.items() for use in uses_of(uri, record) if use.digest in digests]
        return [*sorted(trained, key=_place), *self.fine_tuned({use.bundle_id for use in trained})]

    def fine_tuned(self, ids: Collection[str]) -> list[Use]:
        """Returns the bundles that began with the weights of bundles with these ids, then those of these, and so on."""
        tuned: list[Use] = []
        known, last = set(ids), set(ids)
        while last:
            bases = ((record, base_of(uri, record)) for uri, record in self.bundles.items())
            uses = [base for record, base in bases if base and base.digest in last and record.id not in known]
            last = {use.bundle_id for use in uses}
            known |= last
            tuned += sorted(uses, key=_place)
        return tuned

    def places(self, dataset: str, bases: Collection[str]) -> list[Place] | None:
        """Finds pictures as `places_of` does; None, and a problem, where the dataset cannot be read."""
        try:
            return places_of(dataset, self.datasets[dataset], bases)
        except StriateError as error:
            self.problems.append(f"{dataset} cannot be read, so it was not looked at: {str(error).splitlines()[0]}")
            return None


def uses_of(uri: str, record: BundleRecord) -> Iterator[Use]:
    """Yields the datasets that a bundle records; a member of an ensemble counts as the ensemble.

    Args:
        uri: of the bundle.
        record: its record.
    """
    datasets, digests = record.provenance.get("datasets"), record.provenance.get("dataset_digests")
    if isinstance(datasets, Mapping) and isinstance(digests, Mapping):
        for role, digest in digests.items():
            yield Use(_ensemble(uri), record.id, str(role), str(datasets.get(role, "")), str(digest))


def base_of(uri: str, record: BundleRecord) -> Use | None:
    """Returns the bundle of whose weights a bundle's training began; None where they came from elsewhere.

    Args:
        uri: of the bundle.
        record: its record.
    """
    weights = record.provenance.get("weights")
    if not isinstance(weights, Mapping):
        return None
    return Use(_ensemble(uri), record.id, "weights", str(weights.get("bundle", "")), str(weights.get("bundle_id", "")))


def _ensemble(uri: str) -> str:
    """Returns the URI of the ensemble of which a bundle is a member; of any other bundle its own."""
    while _MEMBER.search(uri):
        uri = _MEMBER.sub("", uri)
    return uri


def _place(use: Use) -> tuple[str, str]:
    return use.bundle, use.role


def find_below(folders: Sequence[str]) -> Catalogue:
    """Finds the datasets, bundles and exports below some folders; reads their records only.

    Raises:
        StriateError: a folder cannot be listed.
    """
    catalogue = Catalogue()
    for folder in folders:
        for file in storage.list_files(storage.normalize(folder)):
            parent, _, name = file.uri.rpartition("/")
            if name == MANIFEST and any(part.startswith("_") for part in file.path.split("/")[:-1]):
                continue  # of what belongs to a dataset, such as feature vectors
            try:
                _add(catalogue, parent, name)
            except (StriateError, pydantic.ValidationError) as error:
                catalogue.problems.append(f"{file.uri} cannot be read: {str(error).splitlines()[0]}")
    return catalogue


def _add(catalogue: Catalogue, parent: str, name: str) -> None:
    if name == MANIFEST:
        manifest = find_manifest(parent)
        if manifest is not None and manifest.complete:
            catalogue.datasets[parent] = manifest
        elif manifest is not None:
            catalogue.problems.append(f"{parent} is not finished, so it was not looked at")
    elif name == BUNDLE:
        data = storage.read_bytes(storage.join(parent, name))
        catalogue.bundles[parent] = BundleRecord.model_validate_json(data)
    elif name == RECORD and storage.name_of(parent) == STATE:
        folder = parent.rpartition("/")[0]
        record = find_record(folder)
        if record is not None and record.complete:
            catalogue.exports[folder] = record


def lineage(jobs: Sequence[Job]) -> set[str]:
    """Returns the digests of everything that a dataset was made from: sources of each job, and of merges."""
    digests = {job.source_digest for job in jobs if job.source_digest is not None}
    for job in jobs:
        for origin in job.origins:
            digests |= {origin.digest} | lineage(origin.jobs)
    return digests


def earlier_digests(manifest: Manifest) -> set[str]:
    """Returns the digests of everything that a dataset has been since its ingest or last merge, itself included.

    Each of these held all pictures of the dataset: jobs other than a merge only change pictures or leave some out.
    Among them is what the dataset was before pictures were removed from it in place.
    """
    return {manifest.digest} | {job.source_digest for job in manifest.jobs if job.source_digest is not None}


def base_keys(keys: pa.Array[Any], jobs: Sequence[Job]) -> list[pa.Array[Any]]:
    """Returns the keys that pictures had before jobs changed them: copies have `#1`, merges may have put a name before.

    Args:
        keys: of a dataset.
        jobs: its history.

    Returns:
        Arrays as long as `keys`: one, or several where a key may come from several datasets of a merge with different
        histories. Null for a key that is not of that dataset.
    """
    possible = [keys]
    for job in reversed(jobs):
        if job.kind == "augment":
            possible = [_compute.replace_substring_regex(one, r"#\d+$", "") for one in possible]
        if job.origins:
            possible = _distinct(one for keys in possible for one in _of_origins(keys, job))
    return possible


def _of_origins(keys: pa.Array[Any], job: Job) -> Iterator[pa.Array[Any]]:
    """Yields the keys that the pictures of a merge may have had first, for each of its datasets."""
    prefixed = job.options.get("on_clash") == "prefix"
    prefixes = name_prefixes([origin.source for origin in job.origins]) if prefixed else [""] * len(job.origins)
    for prefix, origin in zip(prefixes, job.origins, strict=True):
        own = keys
        if prefix:
            stripped = _compute.utf8_slice_codeunits(keys, len(prefix))
            own = _compute.if_else(_compute.starts_with(keys, prefix), stripped, pa.scalar(None, pa.string()))
        yield from base_keys(own, origin.jobs)


def _distinct(arrays: Iterable[pa.Array[Any]]) -> list[pa.Array[Any]]:
    distinct: list[pa.Array[Any]] = []
    for array in arrays:
        if not any(array.equals(one) for one in distinct):
            distinct.append(array)
    return distinct


def first_keys(keys: Sequence[str], jobs: Sequence[Job]) -> set[str]:
    """Returns every key that pictures with these keys may have had first."""
    first = {key for keys in base_keys(pa.array(keys, pa.string()), jobs) for key in keys.to_pylist()}
    return {key for key in first if key is not None}


@dataclass(frozen=True)
class Place:
    """Where a picture is: its key there, the shard and the row."""

    key: str
    shard: str
    row: int


def places_of(dataset: str, manifest: Manifest, bases: Collection[str]) -> list[Place]:
    """Finds pictures by the keys that they had first.

    Args:
        dataset: URI.
        manifest: of the dataset.
        bases: keys as `base_keys` returns them.
    """
    wanted = pa.array(sorted(bases), pa.string())

    def search(shard: FileEntry) -> list[Place]:
        column = ShardReader(storage.join(dataset, shard.name)).columns(["key"])["key"].combine_chunks()
        keys = column.cast(pa.string())
        bases = base_keys(keys, manifest.jobs)
        rows = {row for one in bases for row in _compute.indices_nonzero(_compute.is_in(one, wanted)).to_pylist()}
        return [Place(keys[row].as_py(), shard.name, row) for row in sorted(rows)]

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return [place for places in pool.map(search, manifest.shards) for place in places]


def around(uri: str) -> str:
    """Returns the folder that holds a dataset or bundle; itself where that is a whole bucket or file system."""
    parent = uri.rpartition("/")[0]
    return uri if not parent or parent.endswith("/") or (parent.count("/") == 2 and storage.is_remote(uri)) else parent


def are_related(one: Manifest, other: Manifest) -> bool:
    """Whether two datasets have a source in common, or one was made from the other."""
    return not ({one.digest} | lineage(one.jobs)).isdisjoint({other.digest} | lineage(other.jobs))
