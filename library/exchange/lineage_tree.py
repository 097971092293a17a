"""Follows a picture, a dataset or a bundle back to its sources, and forward to everything that was made from it.

What is connected is decided by digests: a dataset records the digest of its source, and a bundle those of the datasets
that it was trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from library import storage
from library.bundle.description import BUNDLE, BundleRecord
from library.dataset.manifest import MANIFEST, Job, Manifest
from library.dataset.shards import ShardReader
from library.errors import StriateError, UsageError
from library.exchange.provenance import Catalogue, Place, base_of, first_keys, lineage, uses_of
from library.sources.listing import MAX_BYTES

Kind: TypeAlias = Literal["source", "dataset", "bundle", "export"]

_MOST_FILES = 20

_ID = re.compile("[0-9a-f]{12,64}")


@dataclass
class Node:
    """One thing in the tree: a source, a dataset, a bundle or an export.

    Attributes:
        kind: which of these.
        uri: where it is; of a dataset that was not found, where it was.
        found: whether it was found below the folders; a source is not looked for.
        facts: what is known about it, by name.
        children: what was made from it.
    """

    kind: Kind
    uri: str
    found: bool = True
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    children: list[Node] = field(default_factory=list["Node"])

    def described(self) -> dict[str, Any]:
        """Returns the tree as plain data, for --json."""
        return {
            "kind": self.kind,
            "uri": self.uri,
            "found": self.found,
            **self.facts,
            "children": [child.described() for child in self.children],
        }


@dataclass(frozen=True)
class Trace:
    """The answer to a question.

    Attributes:
        subject: what was asked for.
        kind: key, dataset or bundle.
        roots: the sources, each with the tree of what was made from it.
        problems: sentences about what could not be read.
    """

    subject: str
    kind: Literal["key", "dataset", "bundle"]
    roots: Sequence[Node]
    problems: Sequence[str]

    def described(self) -> dict[str, Any]:
        """Returns the trace as plain data, for --json."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "sources": [root.described() for root in self.roots],
            "problems": list(self.problems),
        }


def trace(subject: str, catalogue: Catalogue) -> Trace:
    """Follows a subject through a catalogue.

    Args:
        subject: a key; the URI of a bundle or of a dataset, such as predictions; or the id of a bundle, at least its
            first twelve digits.
        catalogue: what was found below some folders.

    Raises:
        UsageError: nothing there has this key, URI or id.
    """
    uri = storage.normalize(subject)
    by_id = [
        bundle
        for bundle, record in catalogue.bundles.items()
        if _ID.fullmatch(subject) and record.id.startswith(subject)
    ]
    if uri in catalogue.bundles or by_id:
        return _trace_bundles(subject, [uri] if uri in catalogue.bundles else by_id, catalogue)
    if uri in catalogue.datasets:
        return _trace_dataset(subject, uri, catalogue)
    by_dataset = _places(subject, catalogue)
    places = {uri: places for uri, places in by_dataset.items() if places}
    if not places:
        read = sum(places is not None for places in by_dataset.values())
        sentence = (
            f"'{subject}' is neither a bundle (its folder or id), a dataset nor a key of one of the {read:,} finished "
            "datasets that were looked at; --in FOLDER looks elsewhere"
        )
        raise UsageError("\n".join([sentence, *catalogue.problems]))
    tree = _Tree(catalogue, places)
    for dataset in places:
        tree.add_dataset(dataset, catalogue.datasets[dataset])
    tree.add_made_from(places)
    tree.add_files()
    return Trace(subject, "key", tree.roots, catalogue.problems)


def _trace_dataset(subject: str, uri: str, catalogue: Catalogue) -> Trace:
    tree = _Tree(catalogue)
    manifest = catalogue.datasets[uri]
    tree.add_dataset(uri, manifest)
    datasets = {uri}
    for other, its_manifest in catalogue.datasets.items():
        if manifest.digest in lineage(its_manifest.jobs):
            tree.add_dataset(other, its_manifest)
            datasets.add(other)
    tree.add_made_from(datasets)
    tree.mark(uri)
    return Trace(subject, "dataset", tree.roots, catalogue.problems)


def _trace_bundles(subject: str, uris: Sequence[str], catalogue: Catalogue) -> Trace:
    tree = _Tree(catalogue)
    ids = {catalogue.bundles[uri].id for uri in uris}
    for uri in uris:
        tree.add_with_sources(uri)
    for use in catalogue.fine_tuned(ids):
        tree.add_bundle(use.bundle)
    for dataset, manifest in catalogue.datasets.items():
        if any(job.options.get("bundle_id") in ids for job in manifest.jobs):
            tree.add_dataset(dataset, manifest)
    for uri in uris:
        tree.mark(uri)
    return Trace(subject, "bundle", tree.roots, catalogue.problems)


def _places(key: str, catalogue: Catalogue) -> dict[str, list[Place] | None]:
    """Finds a key, and the keys that it had before and after, in every dataset; None for one that cannot be read."""
    bases = {key}
    for manifest in catalogue.datasets.values():
        bases |= first_keys([key], manifest.jobs)
    return {uri: catalogue.places(uri, bases) for uri in catalogue.datasets}


class _Tree:
    """Builds the tree: each dataset below the one that it was made from, those of a merge below the first.

    Args:
        catalogue: what was found.
        places: where the pictures are in each dataset, if pictures are traced.
    """

    def __init__(self, catalogue: Catalogue, places: Mapping[str, Sequence[Place]] | None = None) -> None:
        self.roots: list[Node] = []
        self._catalogue, self._places = catalogue, places
        self._nodes: dict[tuple[str, str], Node] = {}
        self._bundles: dict[str, list[Node]] = {}  # by their ids, and those of their members
        self._added, self._followed = set[str](), set[str]()  # URIs of bundles
        # Also by the digests that datasets had before pictures were removed from them in place.
        self._by_digest = {
            job.source_digest or "": uri
            for uri, manifest in catalogue.datasets.items()
            for job in manifest.jobs
            if job.kind == "remove" and job.source == uri
        } | {manifest.digest: uri for uri, manifest in catalogue.datasets.items()}

    def add_dataset(self, uri: str, manifest: Manifest) -> Node:
        """Adds a dataset and everything that it was made from."""
        known = self._nodes.get(("dataset", uri))
        if known is not None:
            return known
        node = Node("dataset", uri, facts={"made_by": _made_by(manifest.jobs[-1]), "digest": manifest.digest})
        used = str(manifest.jobs[-1].options.get("bundle_id", ""))
        bundle = next((one for one, record in self._catalogue.bundles.items() if record.id == used), None)
        if bundle is not None:
            node.facts["bundle"] = bundle
        self._nodes["dataset", uri] = node
        if self._places is None:
            node.facts["pictures"] = manifest.rows
        else:
            node.facts["pictures"] = _pictures(uri, self._places.get(uri, ()))
        self._parent(manifest.jobs, uri).children.append(node)
        return node

    def _parent(self, jobs: Sequence[Job], uri: str) -> Node:
        """Returns the node that a dataset with this history was made from; adds it if needed."""
        job = jobs[-1]
        if job.origins:
            places = self._places
            # Of a picture's sources, only those that hold it, or are gone.
            held = [
                origin
                for origin in job.origins
                if places is None or origin.digest not in self._by_digest or self._by_digest[origin.digest] in places
            ]
            parents = [self._origin(one.digest, one.source, one.jobs) for one in held or job.origins]
            if len(parents) > 1:
                self._nodes["dataset", uri].facts["also_from"] = [parent.uri for parent in parents[1:]]
            return parents[0]
        if len(jobs) == 1 or job.source_digest is None:
            return self._source(job)
        if job.kind == "remove" and job.source == uri:  # in place: its former self is gone
            return self._parent(jobs[:-1], uri)
        return self._origin(job.source_digest, job.source, jobs[:-1])

    def _origin(self, digest: str, source: str, jobs: Sequence[Job]) -> Node:
        known_uri = self._by_digest.get(digest)
        if known_uri is not None:
            return self.add_dataset(known_uri, self._catalogue.datasets[known_uri])
        key = ("dataset", digest)
        if key not in self._nodes:
            facts = {"made_by": _made_by(jobs[-1]) if jobs else "", "digest": digest}
            node = self._nodes[key] = Node("dataset", source, found=False, facts=facts)
            if jobs:
                self._parent(jobs, source).children.append(node)
            else:
                self.roots.append(node)
        return self._nodes[key]

    def _source(self, job: Job) -> Node:
        """Returns the node of an ingest's source; an export of `striate convert` leads further back."""
        if job.source in self._catalogue.exports:
            return self._export(job.source)
        key = ("source", job.source)
        if key not in self._nodes:
            node = self._nodes[key] = Node("source", job.source)
            self.roots.append(node)
        return self._nodes[key]

    def _export(self, uri: str) -> Node:
        key = ("export", uri)
        if key not in self._nodes:
            record = self._catalogue.exports[uri]
            job = record.jobs[-1]
            node = self._nodes[key] = Node("export", uri, facts={"made_by": _made_by(job), "pictures": record.rows})
            self._origin(job.source_digest or "", job.source, record.jobs[:-1]).children.append(node)
        return self._nodes[key]

    def add_digest(self, digest: str, uri: str) -> None:
        """Adds the dataset with a digest, found or not."""
        self._origin(digest, uri, ())

    def add_made_from(self, datasets: Collection[str]) -> None:
        """Adds the bundles and exports that were made from some datasets."""
        digests = {digest for digest, uri in self._by_digest.items() if uri in datasets}
        for bundle in dict.fromkeys(use.bundle for use in self._catalogue.uses(digests)):
            self.add_bundle(bundle)
        for uri, record in sorted(self._catalogue.exports.items()):
            if self._by_digest.get(record.jobs[-1].source_digest or "") in datasets:
                self._export(uri)

    def add_with_sources(self, uri: str) -> None:
        """Adds a bundle, the datasets that it was trained on, and the bundle that gave its weights with its own."""
        if uri in self._followed:
            return
        self._followed.add(uri)
        for member, record in self._members(uri).items():
            for use in uses_of(member, record):
                self.add_digest(use.digest, use.dataset)
            base = base_of(member, record)
            if base is None or base.digest in self._bundles:
                continue
            found = next((one for one, other in self._catalogue.bundles.items() if other.id == base.digest), None)
            if found is not None:
                self.add_with_sources(found)
            else:
                node = Node("bundle", base.dataset, found=False, facts={"bundle_id": base.digest})
                self._bundles[base.digest] = [node]
                self.roots.append(node)
        self.add_bundle(uri)

    def _members(self, uri: str) -> dict[str, BundleRecord]:
        """Returns the record of a bundle, and of its members if it is an ensemble, by URI."""
        bundles = self._catalogue.bundles.items()
        return {other: record for other, record in bundles if other == uri or other.startswith(f"{uri}/")}

    def add_bundle(self, uri: str) -> None:
        """Adds a bundle below each dataset that it was trained or validated on, and below the one with its weights."""
        record = self._catalogue.bundles[uri]
        if uri in self._added:
            return
        members = self._members(uri)
        self._added.add(uri)
        nodes: list[Node] = []
        placed = set[tuple[int, str]]()
        for other, its_record in members.items():
            for use in uses_of(other, its_record):
                dataset = self._by_digest.get(use.digest)
                parent = self._nodes.get(("dataset", dataset or use.digest))
                if parent is None or (id(parent), use.role) in placed:
                    continue
                placed.add((id(parent), use.role))
                nodes.append(Node("bundle", uri, facts={"bundle_id": record.id, "role": use.role}))
                parent.children.append(nodes[-1])
            base = base_of(other, its_record)
            if base is None:
                continue
            for parent in self._bundles.get(base.digest, ()):
                if (id(parent), base.role) not in placed:
                    placed.add((id(parent), base.role))
                    nodes.append(Node("bundle", uri, facts={"bundle_id": record.id, "role": base.role}))
                    parent.children.append(nodes[-1])
        if not placed:
            nodes.append(Node("bundle", uri, facts={"bundle_id": record.id}))
            self.roots.append(nodes[-1])
        for member in members.values():
            self._bundles.setdefault(member.id, []).extend(nodes)

    def add_files(self) -> None:
        """Adds to each source that is a folder the files of the traced pictures, with the SHA-256 of their bytes."""
        for root in self.roots:
            keys = {
                picture["key"]
                for child in root.children
                if root.kind == "source" and child.kind == "dataset" and child.found
                for picture in child.facts["pictures"]
            }
            paths = [key for key in sorted(keys) if not key.startswith("/") and ".." not in key.split("/")]
            digests = root.facts["files"] = dict[str, str]()
            try:
                for uri in (storage.join(root.uri, path) for path in paths[:_MOST_FILES]):
                    if storage.exists(uri) and not storage.is_folder(uri):
                        digests[uri] = hashlib.sha256(storage.read_bytes(uri, MAX_BYTES)).hexdigest()
            except StriateError as error:  # a store that cannot be reached: the tree is whole without it
                reason = str(error).splitlines()[0]
                self._catalogue.problems.append(f"the files in {root.uri} were not all looked at: {reason}")

    def mark(self, uri: str) -> None:
        """Marks the subject of the trace."""
        waiting = [*self.roots]
        while waiting:
            node = waiting.pop()
            waiting += node.children
            if node.uri == uri and node.found:
                node.facts["subject"] = True


def _made_by(job: Job) -> str:
    bundle = job.options.get("bundle_id")
    what = job.pipeline or (f"with bundle {str(bundle)[:12]}" if bundle else str(job.options.get("to") or ""))
    return f"{job.kind} {what}".strip()


def _pictures(dataset: str, places: Sequence[Place]) -> list[dict[str, Any]]:
    """Returns what a dataset says about pictures, and the SHA-256 of their bytes."""
    pictures: list[dict[str, Any]] = []
    for place in places:
        [table] = list(ShardReader(storage.join(dataset, place.shard), 1, place.row))
        [row] = table.to_pylist()
        data = row["image"]["bytes"] or b""
        facts = {"key": place.key, "label": row["label"], "shard": place.shard, "row": place.row}
        facts |= {"path": row["image"]["path"], "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        pictures.append(facts | {name: row[name] for name in ("predicted",) if name in row})
    return pictures


def is_place(uri: str) -> bool:
    """Whether a bundle or a dataset is at a URI, so that its folder need not be searched for."""
    return any(storage.exists(storage.join(uri, name)) for name in (BUNDLE, MANIFEST))
