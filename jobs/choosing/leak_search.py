"""Looks for pictures of a dataset that training sets hold, too: `striate evaluate --without-leaks`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs.choosing.measure import ensure_measures
from library import storage
from library.bundle.description import BundleRecord
from library.choosing.duplicates.fingerprints import Rule
from library.choosing.splits.leaks import find_leaks, surest_leaks
from library.dataset.manifest import Manifest, load_manifest
from library.dataset.shards import read_columns, write_table
from library.errors import UsageError
from library.evaluation.leakage import Leaks

#: In place of a dataset: the one that each bundle says it was trained on.
AUTO = "auto"
#: The table of leaked pictures, in the folder of a report.
TABLE = "leaks.parquet"


@dataclass(frozen=True)
class LeakSearch:
    """Where leaks are looked for; from `plan_leak_search`.

    Attributes:
        trained_on: URIs of the training sets.
        manifests: of the training sets.
        rule: when two pictures are duplicates.
    """

    trained_on: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    rule: Rule


@dataclass(frozen=True)
class LeaksFound:
    """The result of a search.

    Attributes:
        table: a row of `LEAK_SCHEMA` for each leaked picture, and the training set that holds its copy, `trained_on`.
        leaks: its counts.
    """

    table: pa.Table
    leaks: Leaks

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the leaked pictures."""
        return frozenset(self.table["key"].to_pylist())

    def save(self, folder: str) -> None:
        """Writes the table to a folder."""
        write_table(storage.join(folder, TABLE), self.table)


def plan_leak_search(
    named: Sequence[str],
    bundles: Sequence[tuple[str, BundleRecord]],
    dataset: str,
    near: int | None,
    *,
    flips: bool = False,
) -> LeakSearch:
    """Finds the training sets; reads no picture.

    Args:
        named: URIs of training sets; `AUTO` stands for those that the bundles name.
        bundles: URI and record of each.
        dataset: URI of the dataset in which leaks are looked for.
        near: the most bits in which near duplicates differ; None for exact duplicates only.
        flips: mirrored pictures are near duplicates, too.

    Raises:
        UsageError: a bundle names no training set, or one that has changed since; the dataset is a training set.
    """
    rule = Rule.of_options(near, flips=flips)
    manifests: dict[str, Manifest] = {}
    for name in named:
        if name != AUTO:
            uri = storage.normalize(name)
            manifests[uri] = load_manifest(uri)
    for bundle, record in bundles if AUTO in named else ():
        uri = record.provenance.get("datasets", {}).get("train")
        if uri is None:
            raise UsageError(f"{bundle} does not say what it was trained on; name the dataset: --without-leaks DATASET")
        manifests[uri] = load_manifest(uri)
        if record.provenance.get("dataset_digests", {}).get("train") != manifests[uri].digest:
            raise UsageError(
                f"{uri} is not as it was when {bundle} was trained on it. If its pictures are those of the training, "
                f"name it: --without-leaks {uri}"
            )
    if dataset in manifests:
        raise UsageError(f"--without-leaks {dataset}: this is the dataset that is evaluated; name the training set")
    return LeakSearch(tuple(manifests), tuple(manifests.values()), rule)


def search_leaks(
    search: LeakSearch, dataset: str, manifest: Manifest, *, workers: str = "auto", address: str | None = None
) -> LeaksFound:
    """Finds the pictures of a dataset that a training set holds, too; measures what is missing first, on Ray.

    Args:
        search: from `plan_leak_search`.
        dataset: URI.
        manifest: of the dataset.
        workers: number of workers; `auto` is one per CPU.
        address: address of the Ray cluster.
    """

    def measured(uri: str, its_manifest: Manifest) -> pa.Table:
        measures = ensure_measures(uri, search.rule.columns, workers=workers, address=address)
        if not its_manifest.shards:
            return measures.append_column("label", pa.nulls(0, pa.string()))
        labels = read_columns(uri, ["label"], [shard.name for shard in its_manifest.shards])
        return measures.append_column("label", labels["label"])

    test = measured(dataset, manifest)
    table = surest_leaks(
        {
            uri: find_leaks(measured(uri, its_manifest), test, search.rule)
            for uri, its_manifest in zip(search.trained_on, search.manifests, strict=True)
        }
    )
    leaks = Leaks(
        trained_on=search.trained_on,
        near=search.rule.near,
        pictures=test.num_rows,
        leaked=table.num_rows,
        kinds=dict(sorted(Counter(table["kind"].to_pylist()).items())),
        labels_differ=table["labels_agree"].to_pylist().count(False),
        flips=search.rule.flips,
    )
    return LeaksFound(table, leaks)
