"""Datasets, bundles and exports below some folders, and what connects them: digests, histories and keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    """A bundle that was trained or validated on a dataset.

    Attributes:
        bundle: URI of the bundle.
        bundle_id: its id; of an ensemble's member where that was trained on it.
        role: train or val.
        dataset: URI that the dataset had then.
        digest: digest that it had then.
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
        """Returns the bundles that were trained or validated on datasets with these digests, by URI."""
        found = [use for uri, record in self.bundles.items() for use in uses_of(uri, record) if use.digest in digests]
        return sorted(found, key=lambda use: (use.bundle, use.role))


def uses_of(uri: str, record: BundleRecord) -> Iterator[Use]:
    """Yields the datasets that a bundle records; a member of an ensemble counts as the ensemble.

    Args:
        uri: of the bundle.
        record: its record.
    """
    datasets, digests = record.provenance.get("datasets"), record.provenance.get("dataset_digests")
    if isinstance(datasets, Mapping) and isinstance(digests, Mapping):
        for role, digest in digests.items():
            while _MEMBER.search(uri):
                uri = _MEMBER.sub("", uri)
            yield Use(uri, record.id, str(role), str(datasets.get(role, "")), str(digest))


def find_below(folders: Sequence[str]) -> Catalogue:
    """Finds the datasets, bundles and exports below some folders; reads their records only.

    Raises:
        StriateError: a folder cannot be listed.
    """
    catalogue = Catalogue()
    for folder in folders:
        for file in storage.list_files(storage.normalize(folder)):
            parent, _, name = file.uri.rpartition("/")
            try:
                _add(catalogue, parent, name)
            except (StriateError, pydantic.ValidationError) as error:
                catalogue.problems.append(f"{file.uri} cannot be read: {str(error).splitlines()[0]}")
    return catalogue


def _add(catalogue: Catalogue, parent: str, name: str) -> None:
    if name == MANIFEST and not storage.name_of(parent).startswith("_"):
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
    found = {job.source_digest for job in jobs if job.source_digest is not None}
    for job in jobs:
        for origin in job.origins:
            found |= {origin.digest} | lineage(origin.jobs)
    return found


def base_keys(keys: pa.Array[Any], jobs: Sequence[Job]) -> pa.Array[Any]:
    """Returns the keys that pictures had before jobs changed them: copies have `#1`, merges may have put a name before.

    Args:
        keys: of a dataset.
        jobs: its history.
    """
    for job in reversed(jobs):
        if job.kind == "augment":
            keys = _compute.replace_substring_regex(keys, r"#\d+$", "")
        if job.origins:
            prefixed = job.options.get("on_clash") == "prefix"
            prefixes = name_prefixes([origin.source for origin in job.origins]) if prefixed else [""] * len(job.origins)
            result = keys
            for prefix, origin in zip(prefixes, job.origins, strict=True):
                own = _compute.starts_with(keys, prefix)
                stripped = _compute.utf8_slice_codeunits(keys, len(prefix)) if prefix else keys
                result = (
                    _compute.if_else(own, base_keys(stripped, origin.jobs), result)
                    if prefix
                    else (base_keys(result, origin.jobs))
                )
            keys = result
    return keys


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
        found = _compute.indices_nonzero(_compute.is_in(base_keys(keys, manifest.jobs), wanted)).to_pylist()
        return [Place(keys[row].as_py(), shard.name, row) for row in found]

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return [place for places in pool.map(search, manifest.shards) for place in places]


def are_related(one: Manifest, other: Manifest) -> bool:
    """Whether two datasets have a source in common, or one was made from the other."""
    return not ({one.digest} | lineage(one.jobs)).isdisjoint({other.digest} | lineage(other.jobs))
