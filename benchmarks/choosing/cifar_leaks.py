"""Counts the test pictures of CIFAR-10 that have a duplicate in its training set, by the rule of `striate dedup`.

A second opinion without hashes: the correlation of the pixels (16 x 16 x 3) of each test picture with every training
picture. Barz and Denzler ("Do we train on test data?", 2020) found by features of a network and by eye that 3.25% of
the test pictures have an equal, nearly equal or very similar one in the training set.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import REPOSITORY
from benchmarks.common.command_line import existing_file, make_parser, run_benchmark, say
from benchmarks.common.report import print_table
from library.choosing.duplicates.fingerprints import REASONS, Rule
from library.choosing.measures.measuring import measure_rows
from library.choosing.splits.leaks import find_leaks
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.imaging import codec

_TAR = REPOSITORY.parent / "shared" / "data" / "cifar10.tar.gz"
_RADII = (0, 2, 4, 6, 8, 10)
_ALIKE = (0.98, 0.95, 0.9)
_BLOCK = 500
_MEASURED_AT_ONCE = 1000


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--out /tmp/results")
    parser.add_argument("--tar", type=existing_file, default=_TAR, help="CIFAR-10 as files (../shared/data)")
    return run_benchmark(__file__, parser, _measure, _print)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    tables, vectors = _read(options.tar)
    say(
        f"measured {sum(table.num_rows for table in tables.values()):,} pictures in {time.perf_counter() - start:.0f} s"
    )
    best, pairs = _correlations(vectors["test"], vectors["train"])
    test = tables["test"]
    row_of = {key: row for row, key in enumerate(test["key"].to_pylist())}
    train_row = {key: row for row, key in enumerate(tables["train"]["key"].to_pylist())}
    found: list[dict[str, Any]] = []
    for flips in (False, True):
        for radius in _RADII:
            leaks = find_leaks(tables["train"], test, Rule(radius, flips))
            rows = [row_of[key] for key in leaks["key"].to_pylist()]
            matched = [train_row[key] for key in leaks["train_key"].to_pylist()]
            alike = np.einsum("ij,ij->i", vectors["test"][rows], vectors["train"][matched]) if rows else np.zeros(0)
            if flips and rows:
                mirrored = _vectors_mirrored(vectors["train"][matched])
                alike = np.maximum(alike, np.einsum("ij,ij->i", vectors["test"][rows], mirrored))
            kinds = leaks["kind"].to_pylist()
            found.append(
                {
                    "near": radius,
                    "flips": flips,
                    "test_pictures": leaks.num_rows,
                    "share": round(leaks.num_rows / test.num_rows, 5),
                    "kinds": {kind: kinds.count(kind) for kind in REASONS if kinds.count(kind)},
                    "labels_differ": leaks["labels_agree"].to_pylist().count(False),
                    "correlation_at_least": {str(bound): int((alike >= bound).sum()) for bound in _ALIKE},
                }
            )
            say(str(found[-1]))
    by_pixels = {str(bound): int((best >= bound).sum()) for bound in _ALIKE}
    return {
        "parameters": {"train": tables["train"].num_rows, "test": test.num_rows},
        "found": found,
        "test_pictures_by_correlation": by_pixels,
        "correlated_pairs": pairs,
    }


def _read(tar: Path) -> tuple[dict[str, pa.Table], dict[str, NDArray[np.float32]]]:
    """Returns measures and pixel vectors by split."""
    records: dict[str, list[ImageRecord]] = {"train": [], "test": []}
    with tarfile.open(tar) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if file is not None:
                split, label, name = PurePosixPath(member.name).parts[-3:]
                data = file.read()
                records[split].append(ImageRecord(f"{label}/{name}", data, name, label, codec.probe(data)))
    schema, columns = dataset_schema(), Rule(near=0, flips=True).columns
    tables: dict[str, pa.Table] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    for split, pictures in records.items():
        parts = [pictures[first : first + _MEASURED_AT_ONCE] for first in range(0, len(pictures), _MEASURED_AT_ONCE)]
        measured = pa.concat_tables([measure_rows(table_of(part, schema), columns).table for part in parts])
        tables[split] = measured.append_column("label", pa.array([picture.label for picture in pictures]))
        vectors[split] = np.concatenate([_vectors(part) for part in parts])
    return tables, vectors


def _vectors(pictures: list[ImageRecord]) -> NDArray[np.float32]:
    """Returns pixels reduced to 16 x 16 x 3 as vectors of mean 0 and length 1."""
    pixels = np.stack([codec.decode(picture.data or b"") for picture in pictures])
    small = pixels.reshape(len(pixels), 16, 2, 16, 2, 3).mean((2, 4)).reshape(len(pixels), -1).astype(np.float32)
    small -= small.mean(1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def _vectors_mirrored(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors.reshape(-1, 16, 16, 3)[:, :, ::-1].reshape(len(vectors), -1)


def _correlations(test: NDArray[np.float32], train: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Returns each test picture's highest correlation, and the numbers of pairs above each bound."""
    best = np.zeros(len(test), np.float32)
    pairs = dict.fromkeys(map(str, _ALIKE), 0)
    for first in range(0, len(test), _BLOCK):
        block = test[first : first + _BLOCK] @ train.T
        best[first : first + _BLOCK] = block.max(1)
        for bound in _ALIKE:
            pairs[str(bound)] += int((block >= bound).sum())
    return best, pairs


def _print(result: Mapping[str, Any]) -> None:
    columns = ("near", "flips", "test pictures", "share", "labels differ", *(f"r >= {bound}" for bound in _ALIKE))
    rows = [
        (
            str(found["near"]),
            "yes" if found["flips"] else "",
            found["test_pictures"],
            f"{found['share']:.2%}",
            found["labels_differ"],
            *found["correlation_at_least"].values(),
        )
        for found in result["found"]
    ]
    print_table("test pictures with a duplicate in the training set", columns, rows)
    print_table(
        "", ("test pictures by correlation alone", "number"), list(result["test_pictures_by_correlation"].items())
    )


if __name__ == "__main__":
    sys.exit(main())
