"""Writes small sources of every kind, and reads them back."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from library.imaging import codec
from library.sources import Listing, Options, Read, list_source, read_pictures
from tests import ROOT

SHARED = ROOT.parent / "shared" / "data"


def shared(name: str) -> str:
    """The path of a real data file beside the checkout; skips the test if it does not exist."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return str(path)


def picture(number: int = 0, form: str = "jpeg") -> bytes:
    """An 8 x 8 picture that depends on the number."""
    pixels = np.full((8, 8, 3), number * 7 % 256, np.uint8)
    pixels[:, :4, 1] = number // 36
    return codec.encode(pixels, codec.Encoding.parse(form))[0]


def write_tree(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def tar_bytes(files: Mapping[str, bytes | str] | Sequence[tuple[str, bytes | str]], **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            content = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def write_tar(path: Path, files: Any, **options: Any) -> Path:
    data = tar_bytes(files, **options)
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(("gz", "tgz")) else data)
    return path


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def idx_images(pixels: Any) -> bytes:
    return b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes()


def idx_labels(labels: Sequence[int]) -> bytes:
    return b"\0\0\x08\x01" + struct.pack(">I", len(labels)) + bytes(labels)


def rows(listing: Listing) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in listing.index.to_pylist()}


def labels(listing: Listing) -> dict[str, str | None]:
    return {key: row["label"] for key, row in rows(listing).items()}


def read_all(listing: Listing, options: Options = Options()) -> dict[str, Read]:
    """Every picture of a listing by key, read in random order."""
    order = np.random.default_rng(0).permutation(listing.index.num_rows)
    table = listing.index.take(order)
    keys = table.column("key").to_pylist()
    reads = list(read_pictures(listing.kind, table, listing.gzip_indexes, options))
    assert sorted(read.row for read in reads) == list(range(len(keys))), "each row exactly once"
    return {keys[read.row]: read for read in reads}


def assert_reads_back(source: Path, expected: Mapping[str, bytes]) -> Listing:
    """Asserts that the source has exactly these keys and bytes; returns its listing."""
    listing = list_source(str(source))
    reads = read_all(listing)
    assert {key: read.data for key, read in reads.items()} == dict(expected)
    assert not [read.problem for read in reads.values() if read.problem]
    return listing
