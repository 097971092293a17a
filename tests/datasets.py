"""Datasets of real pictures for tests, and the content of finished ones."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.demo import demo_pictures
from jobs.shards.dataset_job import ShardPlan
from library.dataset.destination import claim, committed, finish
from library.dataset.manifest import Manifest
from library.dataset.totals import Totals
from library.imaging import codec
from tests.conftest import SHARED_DATA
from tests.picture_examples import ingest, write_files

_SPACE = """
filters: [median_blur(size=3)]
places: [{places}]
placebos: 1
"""
_SEARCHED_RECIPE = """
data: {{train: replaced by the search}}
model: lenet5
optimizer: {{name: adamw, lr: 0.005}}
batch_size: 16
epochs: {epochs}
"""


def carry_out(plan: ShardPlan[Any]) -> Manifest:
    """Carries out the plan of a job without Ray; shards that are done are left as they are."""
    claim(plan.destination, plan.jobs, overwrite=plan.overwrite)
    done = {task.stem: report for task, report in committed(plan.tasks, plan.work)}
    reports = [done.get(task.stem) or plan.work.run(task, lambda _: None) for task in plan.tasks]
    return finish(plan.destination, plan.jobs, Totals.of(reports))


def write_photos(folder: Path) -> Path:
    """86 tiles of real photos in three classes, and three damaged files, in `folder`/photos."""
    for path, data in demo_pictures():
        if path.startswith("photos/"):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return folder / "photos"


def write_cats_and_dogs(folder: Path, each: int = 100) -> Path:
    """Writes `each` photos of cats and of dogs to `folder`; without them, the demo's 86 tiles of real photos, each as
    three JPEGs of different quality."""
    tar = SHARED_DATA / "cats-dogs-1000.tar"
    if not tar.is_file():
        return _write_tiles(folder)
    with tarfile.open(tar) as archive:
        files = sorted((member for member in archive if member.isfile()), key=lambda member: member.name)
        for label, members in itertools.groupby(files, key=lambda member: PurePosixPath(member.name).parts[-2]):
            (folder / label).mkdir(parents=True)
            for member in itertools.islice(members, each):
                file = archive.extractfile(member)
                assert file is not None
                (folder / label / PurePosixPath(member.name).name).write_bytes(file.read())
    return folder


def _write_tiles(folder: Path) -> Path:
    for path in sorted(write_photos(folder).glob("*/*")):
        if not path.name.startswith("damaged"):
            pixels = codec.decode(path.read_bytes())
            for quality in (80, 50):
                copy, _ = codec.encode(pixels, codec.Encoding("jpeg", quality))
                path.with_stem(f"{path.stem}-q{quality}").write_bytes(copy)
        else:
            path.unlink()
    return folder / "photos"


def write_digits(folder: Path, count: int = 400) -> Path:
    """The first real handwritten digits of scikit-learn as PNG files, a folder a class, in `folder`/digits."""
    written = 0
    for path, data in demo_pictures():
        if path.startswith("digits/") and written < count:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            written += 1
    return folder / "digits"


def bar(kind: int, seed: int) -> bytes:
    """PNG of a bright bar, upright or lying, below salt-and-pepper noise on 70% of its pixels."""
    rng = np.random.default_rng(seed)
    pixels, place = np.full((28, 28, 1), 28, np.uint8), int(rng.integers(2, 20))
    across = np.s_[:, place : place + 6]
    pixels[across if kind else across[::-1]] = 228
    noise = rng.random(pixels.shape)
    pixels[noise < 0.35], pixels[noise > 0.65] = 0, 255
    return codec.encode(pixels, codec.Encoding("png"))[0]


def write_search(folder: Path, places: str = "always", pictures: int = 160, epochs: int = 5) -> Sequence[str]:
    """Writes datasets of noisy bars, on which a median filter helps by more than 10 points, with a space and a recipe.

    Returns:
        The arguments of `striate search` for them, without `--test` (there is `folder`/test) and `--out`.
    """
    for number, name in enumerate(("train", "val", "test")):
        files = {f"{row % 2}/{row}.png": bar(row % 2, 10_000 * number + row) for row in range(pictures)}
        ingest(write_files(folder / "source" / name, files), folder / name)
    (folder / "space.yaml").write_text(_SPACE.format(places=places))
    (folder / "recipe.yaml").write_text(_SEARCHED_RECIPE.format(epochs=epochs))
    data, rules = (folder / "train", "--val", folder / "val"), ("--space", folder / "space.yaml")
    return [str(each) for each in (*data, *rules, "--recipe", folder / "recipe.yaml", "--budget", "1h", "--no-gpu")]


def rows(dataset: str | Path) -> pa.Table:
    """All pictures of a dataset, by key."""
    return pq.read_table(str(dataset)).sort_by("key")


def content(dataset: str | Path) -> dict[str, Any]:
    """Every file below a dataset by its path: bytes of the Parquet, and the JSON without what differs from run to
    run (`run` in the manifest, `seconds` in a report)."""
    files: dict[str, Any] = {}
    for path in sorted(Path(dataset).rglob("*")):
        if path.is_file():
            name = str(path.relative_to(dataset))
            if path.suffix == ".json":
                document = json.loads(path.read_bytes())
                if isinstance(document, dict):
                    document = {key: value for key, value in document.items() if key not in ("run", "seconds")}
                files[name] = document
            else:
                files[name] = path.read_bytes()
    return files
