"""Exported graphs, kept in the user's cache folder: exporting takes several seconds, most of them imports of PyTorch.

A file's name is a digest of the bundle's id, of the versions of packages and of the code that decides a graph, so a
file is never outdated. It holds the graph's SHA-256 and the graph. The folder is `striate/graphs` in $XDG_CACHE_HOME
(~/.cache); it holds at most 2 GiB and may be removed at any time. A graph is data and runs no code. Before it is
used, its answers are compared with those of its bundle (`library.runtimes.parity`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from library.dataset.manifest import digest_of

_PACKAGES = ("striate", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")
#: The code that decides a graph.
_CODE = ("models/*.py", "bundle/network.py", "runtimes/graph.py", "runtimes/parity.py")
_SUFFIX = ".graph"
_DIGEST_BYTES = 32
_MAX_BYTES = 2 * 2**30


def kept(bundle_id: str, export: Callable[[], bytes]) -> bytes:
    """Returns the graph of a bundle: the kept one, or else that of `export`, which is kept for the next time.

    Without a folder that can be written nothing is kept.

    Args:
        bundle_id: id of the bundle.
        export: exports the graph; its errors are raised.
    """
    graph = found(bundle_id)
    if graph is None:
        graph = export()
        with contextlib.suppress(OSError):
            _keep(_path(bundle_id), graph)
    return graph


def found(bundle_id: str) -> bytes | None:
    """Returns the kept graph of a bundle, or None."""
    path = _path(bundle_id)
    try:
        data = path.read_bytes()
        os.utime(path)  # the graphs used last are kept longest
    except OSError:
        return None
    digest, graph = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    # After a loss of power a file may be there without its content.
    return graph if hashlib.sha256(graph).digest() == digest else None


def _path(bundle_id: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "striate", "graphs", digest_of([bundle_id, _versions(), _code()]) + _SUFFIX)


@cache
def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # the exporter reports it
            versions[package] = version(package)
    return versions


@cache
def _code() -> list[str]:
    library = Path(__file__).parents[1]
    files = [file for pattern in _CODE for file in sorted(library.glob(pattern))]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def _keep(path: Path, graph: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(graph) > _MAX_BYTES:
        return
    descriptor, unfinished = tempfile.mkstemp(_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(graph).digest())
            file.write(graph)
        os.replace(unfinished, path)
    except OSError:
        os.unlink(unfinished)
        raise
    _make_room(path.parent)


def _make_room(folder: Path) -> None:
    """Removes the graphs that were not used for the longest time, until the others fit."""
    used = sorted(((file.stat(), file) for file in folder.glob(f"*{_SUFFIX}")), key=lambda one: -one[0].st_mtime_ns)
    total = 0
    for status, file in used:
        total += status.st_size
        if total > _MAX_BYTES:
            file.unlink(missing_ok=True)
