"""Measures which planted copies of photos are found as duplicates, and how many pairs of unrelated photos are.

Each photo is written with six copies: half the size, JPEG of quality 40, a frame of 2.5% cut off at each side (5% of
width and height), the lower right 5% cut off, brighter by a fifth, mirrored. A pair is right if both pictures are of
one photo. Striate's rule for several radii stands beside its two hashes alone, and beside the cosine of embeddings,
alone and joined with `--near 4`: of patches (as in `striate audit --model patches`), and of a bundle with --bundle.
With --peer-python also imagededup and CleanVision, on the same files in the same run. Seconds are of one process and
of what each peer starts by itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.common.command_line import add_photos, at_least, existing_file, make_parser, run_benchmark, work_folder
from benchmarks.common.photo_files import make_photos
from benchmarks.common.report import print_table
from library.bundle.description import load_record
from library.choosing.duplicates.fingerprints import CHECK_BITS, Fingerprints, Rule, fingerprints
from library.choosing.duplicates.neighbours import distances
from library.choosing.duplicates.similarity import is_similar, unit_vectors
from library.choosing.labels.embedders import BundleEmbedder, LoadedEmbedder, PatchEmbedder
from library.choosing.labels.patch_features import SAMPLE_PICTURES, PatchFilters, patch_inputs
from library.choosing.measures.measuring import measure_rows
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.imaging import codec
from library.imaging.picture import Pixels

_PROGRAM = Path(__file__).parent / "programs" / "peer_duplicates.py"
_RADII = (0, 2, 4, 6, 8, 10, 12)
_COSINES = (0.999, 0.99, 0.98, 0.95, 0.9)
_KINDS = ("half", "quality_40", "frame_cut", "corner_cut", "brighter", "mirrored")
_MEASURED_AT_ONCE = 64


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--photos 50 --peer-python out/peers/bin/python --out /tmp/results")
    add_photos(parser, 0.5)
    parser.add_argument("--photos", type=at_least(2), default=500, help="number of photos (500)")
    parser.add_argument("--bundle", help="bundle whose embeddings are compared, too")
    parser.add_argument("--peer-python", type=existing_file, help="Python with imagededup and cleanvision")
    return run_benchmark(__file__, parser, _measure, _print)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with work_folder(options.work) as work:
        photos = make_photos(options.tar, work / "photos", options.photos)
        folder = work / "planted"
        folder.mkdir()
        for number, path in enumerate(photos.paths[: photos.distinct]):
            for kind, data in _copies(path.read_bytes()):
                (folder / f"{number:04d}-{kind}.jpg").write_bytes(data)
        names = sorted(path.name for path in folder.iterdir())
        start = time.perf_counter()
        measures = _measures(folder, names)
        measured_s = round(time.perf_counter() - start, 2)
        contestants: dict[str, Any] = {}
        for name, found in _ours(measures):
            contestants[name] = {"seconds": measured_s, **_judged(names, found)}
        near = _all_pairs(fingerprints(measures, Rule(4)))
        for name, similar, seconds in _by_embeddings(folder, names, options.bundle):
            contestants[name] = {"seconds": seconds, **_judged(names, similar)}
            contestants[f"striate_4_{name}"] = {"seconds": measured_s + seconds, **_judged(names, similar | near)}
        if options.peer_python:
            command = [str(options.peer_python), str(_PROGRAM), str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            for name, found in json.loads(done.stdout).items():
                contestants[name] = found if "not_run" in found else _judged_peer(names, found)
        parameters = {
            "photos": photos.distinct,
            "source": Path(photos.source).name,
            "files": len(names),
            "bundle": None if options.bundle is None else load_record(options.bundle).id,
        }
        return {"parameters": parameters, "check_bits": CHECK_BITS, "contestants": contestants}


def _copies(data: bytes) -> Iterator[tuple[str, bytes]]:
    pixels = codec.decode(data)
    height, width = pixels.shape[:2]
    y, x = max(1, round(height * 0.025)), max(1, round(width * 0.025))
    half = cv2.resize(pixels, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    yield "original", data
    yield "half", _jpeg(half.reshape(*half.shape[:2], -1))
    yield "quality_40", _jpeg(pixels, 40)
    yield "frame_cut", _jpeg(pixels[y:-y, x:-x])
    yield "corner_cut", _jpeg(pixels[: -2 * y, : -2 * x])
    yield "brighter", _jpeg(np.clip(np.rint(pixels * 1.2), 0, 255).astype(np.uint8))
    yield "mirrored", _jpeg(pixels[:, ::-1])


def _jpeg(pixels: Pixels, quality: int = 90) -> bytes:
    return codec.encode(np.ascontiguousarray(pixels), codec.Encoding("jpeg", quality))[0]


def _measures(folder: Path, names: Sequence[str]) -> pa.Table:
    schema, columns = dataset_schema(), Rule(near=0, flips=True).columns
    tables: list[pa.Table] = []
    for first in range(0, len(names), _MEASURED_AT_ONCE):
        records: list[ImageRecord] = []
        for name in names[first : first + _MEASURED_AT_ONCE]:
            data = (folder / name).read_bytes()
            records.append(ImageRecord(name, data, name, None, codec.probe(data)))
        tables.append(measure_rows(table_of(records, schema), columns).table)
    return pa.concat_tables(tables)


def _ours(measures: pa.Table) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yields names and N x N arrays that say which pairs are near."""
    for radius in _RADII:
        yield f"striate_{radius}", _all_pairs(fingerprints(measures, Rule(radius)))
    for radius in (4, 8):
        yield f"striate_{radius}_flips", _all_pairs(fingerprints(measures, Rule(radius, flips=True)))
    for radius in _RADII:
        for name in ("phash", "dhash"):
            hashes = measures[name].to_numpy()
            yield f"{name}_alone_{radius}", distances(hashes[:, None], hashes[None]) <= radius


def _by_embeddings(
    folder: Path, names: Sequence[str], bundle: str | None
) -> Iterator[tuple[str, NDArray[np.bool_], float]]:
    """Yields names, N x N arrays that say which pairs are similar, and the seconds that the embeddings took."""
    files = [(folder / name).read_bytes() for name in names]
    originals = [data for name, data in zip(names, files, strict=True) if name.endswith("-original.jpg")]
    inputs = patch_inputs(3)
    filters = PatchFilters.learn([inputs.prepare(data) for data in originals[:SAMPLE_PICTURES]])
    models: dict[str, LoadedEmbedder] = {"patches": PatchEmbedder(filters, 3, "").load("cpu")}
    if bundle is not None:
        models["bundle"] = BundleEmbedder.of(bundle).load("cpu")
    for model, embedder in models.items():
        start = time.perf_counter()
        parts = [files[first : first + _MEASURED_AT_ONCE] for first in range(0, len(files), _MEASURED_AT_ONCE)]
        computed = np.concatenate([embedder.embed([embedder.prepare(data, {}) for data in part]) for part in parts])
        column = pa.FixedSizeListArray.from_arrays(pa.array(computed.reshape(-1)), computed.shape[1])
        vectors = unit_vectors([column], len(files))
        seconds = round(time.perf_counter() - start, 2)
        product = vectors @ vectors.T
        for cosine in _COSINES:
            yield f"cosine_{model}_{cosine}", is_similar(product, cosine), seconds


def _all_pairs(prints: Fingerprints) -> NDArray[np.bool_]:
    every = np.arange(len(prints.files))
    return np.stack([prints.reason(np.array([one]), every) > 0 for one in every.tolist()])


def _judged_peer(names: Sequence[str], found: Mapping[str, Any]) -> dict[str, Any]:
    place = {name: number for number, name in enumerate(names)}
    near = np.zeros((len(names), len(names)), np.bool_)
    for one, other in found["pairs"]:
        near[place[one], place[other]] = near[place[other], place[one]] = True
    return {"version": found["version"], "seconds": found["seconds"], **_judged(names, near)}


def _judged(names: Sequence[str], near: NDArray[np.bool_]) -> dict[str, Any]:
    photo = np.array([name.split("-")[0] for name in names])
    kind = np.array([name.split("-")[1].removesuffix(".jpg") for name in names])
    same = photo[:, None] == photo[None]
    recall = {
        name: round(float(near[(kind == "original")[:, None] & (kind == name)[None] & same].mean()), 4)
        for name in _KINDS
    }
    once = np.triu(np.ones_like(near), 1)
    right, wrong = int((near & same & once).sum()), int((near & ~same & once).sum())
    unlike = int(np.sum(near & ~same & once & (kind == "original")[:, None] & (kind == "original")[None]))
    return {
        "recall": recall,
        "right_pairs": right,
        "wrong_pairs": wrong,
        "wrong_pairs_of_originals": unlike,
        "precision": round(right / (right + wrong), 5) if right + wrong else None,
    }


def _print(result: Mapping[str, Any]) -> None:
    rows = [
        (name, *found["recall"].values(), found["precision"], found["wrong_pairs"], found["seconds"])
        for name, found in result["contestants"].items()
        if "recall" in found
    ]
    print_table("share of the copies that are found", ("", *_KINDS, "precision", "wrong pairs", "seconds"), rows)


if __name__ == "__main__":
    sys.exit(main())
