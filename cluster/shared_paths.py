"""Checks that all nodes of a cluster see the same files at a local path.

A task on each node reads the path and compares it with what this process sees or has written there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import NamedTuple

from cluster.resources import nodes
from library import storage
from library.errors import StriateError, UsageError

_NODE_TIMEOUT_S = 60.0
_SAMPLE_BYTES = 2**20
_MOST_NAMES = 1000
#: Small files that identify the content of a dataset or bundle.
_IDENTIFYING = ("_manifest.json", "bundle.json")


def check_shared(*, reads: Iterable[str] = (), writes: Iterable[str] = (), on_nodes_without_cpus: bool = False) -> None:
    """Refuses local paths whose content differs between this process and a node of the cluster.

    Does nothing if all paths are in S3, or all work runs on this node. Nodes that join later are not checked here:
    each worker of a shard job checks for itself.

    Args:
        reads: URIs of datasets, bundles and files that workers read.
        writes: URIs of folders that workers write to; they need not exist yet.
        on_nodes_without_cpus: whether readers may run on nodes without CPUs too.

    Raises:
        UsageError: names the path and the node.
        StriateError: when a node does not answer.
    """
    read, written = ([uri for uri in dict.fromkeys(uris) if not storage.is_remote(uri)] for uris in (reads, writes))
    if not read and not written:
        return
    if not any(node.get("CPU") for node in nodes()):
        raise UsageError(
            f"{(read + written)[0]} is a path of this machine, and no node is up yet to check that workers see the "
            "same files there: use s3://BUCKET/... for datasets, bundles and files of trainings"
        )
    others = _other_nodes(0 if on_nodes_without_cpus else 1e-4)
    if not others:
        return
    with contextlib.ExitStack() as stack:
        places = {path: _Place(path, _fingerprint(path)) for path in read}
        for path in written:
            probe, content = stack.enter_context(_probe(path))
            places[path] = _Place(probe, hashlib.sha256(content).hexdigest())
        _compare(others, places)


class _Place(NamedTuple):
    """A file or folder that nodes read, and its fingerprint on this machine."""

    path: str
    fingerprint: str | None


def _other_nodes(least_cpus: float) -> dict[str, str]:
    """Returns the addresses, by id, of the other nodes with at least `least_cpus` CPUs."""
    import ray
    from ray.util.client import ray as client

    # A process that is connected through ray:// is on none of the nodes.
    here = "" if client.is_connected() else ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= least_cpus and node["NodeID"] != here
    }


def _compare(nodes: Mapping[str, str], places: Mapping[str, _Place]) -> None:
    """Compares the fingerprints on each node with those on this machine.

    Args:
        nodes: addresses of the nodes by id.
        places: what the nodes read, by the path that a message names.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0)(_fingerprints)
    paths = [place.path for place in places.values()]
    answers = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths)
        for node in nodes
    }
    for node, answer in answers.items():
        name = f"node {nodes[node]} ({node[:8]})"
        try:
            fingerprints: Sequence[str | None] = ray.get(answer, timeout=_NODE_TIMEOUT_S)
        except GetTimeoutError:
            raise StriateError(
                f"{name} did not run a task within {_NODE_TIMEOUT_S:.0f} s; `striate doctor` shows why"
            ) from None
        except RayError as error:
            raise StriateError(
                f"{name} cannot read its paths: {str(error).strip().splitlines()[-1]}; `striate doctor` shows why"
            ) from error
        for (path, place), fingerprint in zip(places.items(), fingerprints, strict=True):
            if place.fingerprint is None or fingerprint != place.fingerprint:
                raise UsageError(
                    f"{path} is a path of this machine, and {name} of the cluster does not see the same files there: "
                    "with several nodes, datasets, bundles and files of trainings must be on storage that all nodes "
                    "share: s3://BUCKET/..., or a file system that is mounted at the same path on all nodes"
                )


def _fingerprints(paths: Sequence[str]) -> list[str | None]:
    return [_fingerprint(path) for path in paths]


def _fingerprint(path: str) -> str | None:
    """Returns a digest of the content at `path`, or None if nothing is there.

    Inode numbers would be simpler, but on network file systems they differ between nodes.
    """
    try:
        if not os.path.isdir(path):
            return _file_digest(path)
        for name in _IDENTIFYING:
            if os.path.exists(os.path.join(path, name)):
                return _file_digest(os.path.join(path, name))
        with os.scandir(path) as entries:
            listed = sorted((entry.name, entry.stat().st_size if entry.is_file() else -1) for entry in entries)
        return hashlib.sha256(repr(listed[:_MOST_NAMES]).encode("utf-8", "surrogateescape")).hexdigest()
    except OSError:
        return None


def _file_digest(path: str) -> str:
    """Returns a digest of the size, beginning and end of a file."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(_SAMPLE_BYTES))
        if size > _SAMPLE_BYTES:
            digest.update(str(size).encode())
            file.seek(max(_SAMPLE_BYTES, size - _SAMPLE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


@contextlib.contextmanager
def _probe(folder: str) -> Generator[tuple[str, bytes]]:
    """Writes a small file in `folder`, or its nearest existing parent, for the duration of the block."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    path, content = storage.join(folder, f"{storage.TEMPORARY_PREFIX}{uuid.uuid4().hex}"), os.urandom(64)
    storage.write_bytes(path, content)
    try:
        yield path, content
    finally:
        storage.remove([path])
