"""Pictures per second that a training worker is fed with when its step costs nothing.

For each number of photos: what one CPU decodes and augments, as `striate plan` measures it; a worker that takes
batches of a recipe's feed and does nothing with them; and torchvision's ImageFolder with as many processes as there are
CPUs for decoding. benchmarks/README.md says how the figures are defined.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import REPOSITORY
from benchmarks.common.measuring import fresh_folder, spread
from benchmarks.common.photo_files import PhotoSet, make_photos
from benchmarks.common.result_file import code_digest, machine, save
from cluster.connection.session import Session, connect
from jobs.probe import cpu_rates
from jobs.train.data import TrainData, make_loader, put_data
from jobs.train.plan import TrainPlan, plan_train
from jobs.train.scaling import Scaling
from jobs.train.worker_task import TrainTask
from library.dataset.manifest import VERSIONS, FileEntry, Job, Manifest, Tally, save_manifest
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.dataset.shards import SUFFIX, ShardWriter, shard_name
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.recipe import Recipe

_AUGMENT = "random_resized_crop(224) | flip"
_SIDE = 224
_DISTINCT = 500
_CLASSES = 10
_QUIET_LOAD = 0.5
_LEAST_SHARE, _LEAST_PEER, _MOST_FIRST_S = 0.85, 1.5, 0.2
# The first epoch is not counted: so much of it, at most, is taken.
_WARM_PICTURES = 3000
# Later epochs are taken until there are so many pictures, and at least one.
_COUNTED_PICTURES = 6000
_PROBE_S = 3.0
_PEER_WARM_BATCHES, _PEER_PICTURES = 4, 3000
_ROWS_AT_ONCE = 16

_EXAMPLES = """examples:
  .venv/bin/python benchmarks/train/feed_throughput.py
  .venv/bin/python benchmarks/train/feed_throughput.py --photos 200 --batch-size 32 --out /tmp/results
"""


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse; a goal that is missed is no failure."""
    options = _parser().parse_args()
    try:
        if min(options.photos) < 2 * options.batch_size:
            raise UsageError(f"--photos: at least two batches of {options.batch_size}")
        result = _measure(options)
        print(json.dumps(result["goals"], indent=1))
        print(save(result, options.out))
    except StriateError as error:
        print(f"feed_throughput: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, nargs="+", default=[500, 6000, 60_000], help="(500 6000 60000)")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures that are taken at once (64)")
    parser.add_argument("--shard-mb", type=float, default=128, help="shard size in MiB (128)")
    parser.add_argument("--tar", type=Path, help="photos, repeated as needed (photos-500.tar, else synthetic)")
    parser.add_argument("--work", type=Path, help="folder for some 7 GB of temporary data, removed at the end")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the result")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    described = machine(cores)
    if described["load_1min_before"] > _QUIET_LOAD:
        _say(f"this machine is busy (load {described['load_1min_before']}); the result will say so, and mean little")
    sizes: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="striate-bench-", dir=options.work) as folder:
        photos = make_photos(options.tar, Path(folder) / "photos", _DISTINCT)
        for count in options.photos:
            with fresh_folder(Path(folder) / "data") as dataset:
                _write_dataset(photos, dataset, count, options.shard_mb)
                sizes[f"{count}"] = _one_size(dataset, photos, count, options.batch_size, cores)
            _say(f"{count:,} photos: {sizes[f'{count}']}")
    return {
        "benchmark": "feed_throughput",
        "machine": described,
        "code_changed_meanwhile": code_digest() != described["code_digest"],
        "parameters": {
            "photos": photos.facts | {"source": photos.source, "photos": options.photos},
            "augment": _AUGMENT,
            "batch_size": options.batch_size,
            "shard_mb": options.shard_mb,
        },
        "sizes": sizes,
        "goals": [goal for count, figures in sizes.items() for goal in _goals(int(count), figures)],
    }


def _goals(count: int, figures: dict[str, Any]) -> list[dict[str, Any]]:
    rates = figures["feed"]["pictures_per_s"]
    limit, peer = (figures[name]["pictures_per_s"] for name in ("limit", "image_folder"))
    firsts = figures["feed"]["first_batch_s"]
    share, times = ([rate / other for rate in rates] for other in (limit, peer))
    return [
        {
            "what": f"{count:,} photos, feed / (CPUs for decoding x rate of one CPU)",
            "at_least": _LEAST_SHARE,
            "ratio": spread(share),
            "reached": statistics.median(share) >= _LEAST_SHARE,
        },
        {
            "what": f"{count:,} photos, feed / ImageFolder with as many processes",
            "at_least": _LEAST_PEER,
            "ratio": spread(times),
            "reached": statistics.median(times) >= _LEAST_PEER,
        },
        {
            "what": f"{count:,} photos, seconds to the first batch of a later epoch",
            "at_most": _MOST_FIRST_S,
            "seconds": spread(firsts),
            "reached": statistics.median(firsts) <= _MOST_FIRST_S,
        },
    ]


def _write_dataset(photos: PhotoSet, folder: Path, count: int, shard_mb: float) -> None:
    """A dataset of `count` photos, the distinct ones again and again."""
    schema = dataset_schema([])
    names = [f"class-{number % _CLASSES}" for number in range(photos.distinct)]
    records = [
        ImageRecord(path.name, (data := path.read_bytes()), path.name, name, codec.probe(data), {})
        for path, name in zip(photos.paths, names, strict=True)
    ]
    table = table_of(records, schema)
    each = max(1, int(shard_mb * 2**20 / photos.facts["mean_bytes"]))
    entries: list[FileEntry] = []
    for number, first in enumerate(range(0, count, each)):
        with ShardWriter(str(folder), shard_name(number) + SUFFIX, schema) as writer:
            for begin in range(first, min(first + each, count), _ROWS_AT_ONCE):
                rows = np.arange(begin, min(begin + _ROWS_AT_ONCE, first + each, count))
                keys = pa.array([f"{row:07d}.jpg" for row in rows])
                some = table.take(pa.array(rows % len(records)))
                writer.add(some.set_column(schema.get_field_index("key"), schema.field("key"), keys))
        entries.append(writer.entry)
    classes = Counter(names[row % len(records)] for row in range(count))
    tally = Tally(rows_in=count, rows_out=count, classes=dict(sorted(classes.items())), channels={"3": count})
    job = Job(kind="ingest", source=str(photos.folder))
    save_manifest(str(folder), Manifest(complete=True, jobs=[job], tally=tally, shards=entries, versions=VERSIONS))


def _one_size(dataset: Path, photos: PhotoSet, count: int, batch_size: int, cores: int) -> dict[str, Any]:
    recipe = Recipe.parse(
        json.dumps(
            {
                "data": {"train": str(dataset)},
                "input": {"steps": "rgb", "size": _SIDE},
                "model": "resnet18",
                "augment": _AUGMENT,
                "optimizer": {"name": "sgd", "lr": 0.1},
                "schedule": {"name": "constant"},
                "batch_size": batch_size,
                "epochs": 2,
            }
        )
    )
    plan = plan_train(recipe, str(dataset.with_name("bundle")))
    before = _one_cpu(recipe)
    scaling = Scaling.choose(Session(None, cores, 1, node_cpus=(cores,)), "1", gpu=False, cpus_per_worker=None)
    cpus = max(1, round(cores - scaling.worker_cpus))
    # Before Ray is started: its processes come out of this one.
    peer = _image_folder(photos, dataset.with_name("files"), count, batch_size, cpus)
    with connect("local", num_cpus=cores) as session:
        feed = _fed(plan, scaling, session, count)
    one = statistics.mean([before, _one_cpu(recipe)])
    return {
        "pictures_in": plan.described()["pictures_in"],
        "limit": {"cpus": cpus, "one_cpu_pictures_per_s": round(one, 1), "pictures_per_s": round(one * cpus, 1)},
        "feed": feed,
        "image_folder": peer,
    }


def _one_cpu(recipe: Recipe) -> float:
    decoded, augmented = cpu_rates(recipe, _PROBE_S)
    return 1 / (1 / decoded + 1 / augmented)


def _fed(plan: TrainPlan, scaling: Scaling, session: Session, count: int) -> dict[str, Any]:
    """What one worker takes, in an actor that has what a training worker has."""
    import ray

    start = time.perf_counter()
    data = put_data(plan, session)
    task = plan.task(scaling, "")
    epochs = max(1, round(_COUNTED_PICTURES / count))
    worker: Any = ray.remote(num_cpus=scaling.worker_cpus)(_take)
    figures: Any = ray.get(worker.remote(data, task, epochs))
    return {"whole_s": round(time.perf_counter() - start, 2), **figures}


def _take(data: TrainData, task: TrainTask, epochs: int) -> dict[str, Any]:
    """Takes batches of part of a first epoch, and then of `epochs` whole ones."""

    recipe = Recipe.model_validate_json(task.recipe)
    loader = make_loader(data, task, recipe, int(recipe.batch_size), 0, 1)
    steps = loader.steps_per_epoch
    warm = min(steps, max(1, _WARM_PICTURES // int(recipe.batch_size)))
    loader.start(0, steps - warm, warm + epochs * steps)
    for _ in loader.training():
        pass
    rates: list[float] = []
    firsts: list[float] = []
    for _ in range(epochs):
        start, pictures_read, first = time.perf_counter(), 0, None
        for batch in loader.training():
            first = time.perf_counter() - start if first is None else first
            pictures_read += len(batch.labels)
        rates.append(round(pictures_read / (time.perf_counter() - start), 1))
        firsts.append(round(first or 0.0, 4))
    return {"pictures_per_s": rates, "first_batch_s": firsts}


def _image_folder(photos: PhotoSet, folder: Path, count: int, batch_size: int, processes: int) -> dict[str, Any]:
    """torchvision's ImageFolder, as one writes it. Its files are hard links to the distinct photos."""
    for number in range(count):
        target = folder / f"class-{number % _CLASSES}" / f"{number:07d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(photos.paths[number % photos.distinct], target)
    steps = [transforms.RandomResizedCrop(_SIDE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    files = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader: Any = DataLoader(
        files, batch_size, shuffle=True, drop_last=True, num_workers=processes, persistent_workers=True
    )
    batches = (batch for _ in itertools.count() for batch in loader)
    for _ in range(_PEER_WARM_BATCHES):
        next(batches)
    batch_count = max(1, _PEER_PICTURES // batch_size)
    start = time.perf_counter()
    for _ in range(batch_count):
        next(batches)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return {"processes": processes, "pictures_per_s": round(batch_count * batch_size / seconds, 1)}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
