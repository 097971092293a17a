"""Finds duplicates in a folder with imagededup and CleanVision, and prints the pairs as JSON.

    PYTHON peer_duplicates.py FOLDER

Runs in an environment of its own: `python -m venv out/peers && out/peers/bin/pip install imagededup cleanvision`. It
imports nothing of Striate. A package that is not installed is left out, with the reason.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def main() -> None:
    folder = Path(sys.argv[1])
    results: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for package, run in (("imagededup", _imagededup), ("cleanvision", _cleanvision)):
            try:
                results |= run(folder)
            except ImportError as error:
                results[package] = {"not_run": str(error)}
    json.dump(results, sys.stdout)


def _imagededup(folder: Path) -> dict[str, Any]:
    from imagededup.methods import DHash, PHash  # pyright: ignore[reportMissingImports] -- in another environment

    logging.disable(logging.WARNING)
    results: dict[str, Any] = {}
    for name, method in (("phash", PHash()), ("dhash", DHash())):
        start = time.perf_counter()
        encodings = method.encode_images(image_dir=folder)
        encoded_s = time.perf_counter() - start
        for distance in (4, 8, 10):
            start = time.perf_counter()
            found = method.find_duplicates(encoding_map=encodings, max_distance_threshold=distance)
            pairs = {tuple(sorted((one, other))) for one, others in found.items() for other in others}
            results[f"imagededup_{name}_{distance}"] = {
                "version": importlib.metadata.version("imagededup"),
                "pairs": sorted(pairs),
                "seconds": round(encoded_s + time.perf_counter() - start, 2),
            }
    return results


def _cleanvision(folder: Path) -> dict[str, Any]:
    from cleanvision import Imagelab  # pyright: ignore[reportMissingImports] -- in another environment

    start = time.perf_counter()
    lab = Imagelab(data_path=str(folder))
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, verbose=False)
    groups = [group for kind in ("exact_duplicates", "near_duplicates") for group in lab.info[kind]["sets"]]
    return {
        "cleanvision": {
            "version": importlib.metadata.version("cleanvision"),
            "pairs": sorted(_pairs_of(groups)),
            "seconds": round(time.perf_counter() - start, 2),
        }
    }


def _pairs_of(groups: Iterable[Iterable[str]]) -> set[tuple[str, str]]:
    pairs: set[tuple[str, str]] = set()
    for group in groups:
        pairs |= set(itertools.combinations(sorted(Path(path).name for path in group), 2))
    return pairs


if __name__ == "__main__":
    main()
