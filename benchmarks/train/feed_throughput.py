"""Measures how many pictures per second a training worker receives when its step costs nothing.

For each number of photos: the rate at which one CPU decodes and augments, as `striate plan` measures it; a worker that
takes batches of a recipe's feed and does nothing with them; and torchvision's ImageFolder with as many processes as
there are CPUs for decoding. benchmarks/README.md defines the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.common.command_line import add_photos, at_least, make_parser, run_benchmark, say, work_folder
from benchmarks.common.datasets import write_dataset
from benchmarks.common.measuring import RATE, fresh_folder
from benchmarks.common.photo_files import PhotoSet, make_photos
from benchmarks.common.report import goal, print_goals
from cluster.connection.session import Session, connect
from jobs.probe import cpu_rates
from jobs.train.data import TrainData, make_loader, put_data
from jobs.train.plan import TrainPlan, plan_train
from jobs.train.scaling import Scaling
from jobs.train.worker_task import TrainTask
from library.errors import UsageError
from library.recipe import Recipe

_AUGMENT = "random_resized_crop(224) | flip"
_SIDE = 224
_DISTINCT = 500
_CLASSES = 10
_MIN_SHARE, _MIN_PEER_RATIO, _MAX_FIRST_BATCH_S = 0.85, 1.5, 0.2
# The first epoch is not counted, so at most this many pictures of it are taken.
_WARM_UP_PICTURES = 3000
# Later epochs are taken until there are about this many pictures, but at least one epoch.
_COUNTED_PICTURES = 6000
_PROBE_S = 3.0
_PEER_WARM_UP_BATCHES, _PEER_PICTURES = 4, 3000


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--photos 200 --batch-size 32 --out /tmp/results")
    add_photos(parser, disk_gb=7)
    parser.add_argument(
        "--photos", type=at_least(1), nargs="+", default=[500, 6000, 60_000], help="numbers of photos (500 6000 60000)"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="pictures per batch (64)")
    parser.add_argument("--shard-mb", type=float, default=128, help="shard size in MiB (128)")
    return run_benchmark(__file__, parser, _measure, lambda result: print_goals(result["goals"]))


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    if min(options.photos) < 2 * options.batch_size:
        raise UsageError(f"--photos {min(options.photos)}: at least two batches of {options.batch_size}")
    cores = len(os.sched_getaffinity(0))
    sizes: dict[str, dict[str, Any]] = {}
    with work_folder(options.work) as folder:
        photos = make_photos(options.tar, folder / "photos", _DISTINCT)
        for count in options.photos:
            with fresh_folder(folder / "data") as dataset:
                write_dataset(_labelled(photos), dataset, count, options.shard_mb, str(photos.folder))
                sizes[f"{count}"] = _measure_size(dataset, photos, count, options.batch_size, cores)
            say(f"{count:,} photos: {sizes[f'{count}']}")
    return {
        "parameters": {
            "photos": photos.facts | {"source": photos.source, "photos": options.photos},
            "augment": _AUGMENT,
            "batch_size": options.batch_size,
            "shard_mb": options.shard_mb,
        },
        "sizes": sizes,
        "goals": [entry for count, figures in sizes.items() for entry in _goals(int(count), figures)],
    }


def _goals(count: int, figures: dict[str, Any]) -> list[dict[str, Any]]:
    feed, limit, peer = (figures[name] for name in ("feed", "limit", "image_folder"))
    shares, peer_ratios = ([rate / other[RATE] for rate in feed[RATE]] for other in (limit, peer))
    title = f"{count:,} photos"
    return [
        goal(f"{title}, feed / (CPUs for decoding x rate of one CPU)", shares, at_least=_MIN_SHARE),
        goal(f"{title}, feed / ImageFolder with as many processes", peer_ratios, at_least=_MIN_PEER_RATIO),
        goal(
            f"{title}, seconds to the first batch of a later epoch", feed["first_batch_s"], at_most=_MAX_FIRST_BATCH_S
        ),
    ]


def _labelled(photos: PhotoSet) -> list[tuple[bytes, str]]:
    """Returns the distinct photos with made-up classes."""
    paths = photos.paths[: photos.distinct]
    return [(path.read_bytes(), f"class-{number % _CLASSES}") for number, path in enumerate(paths)]


def _measure_size(dataset: Path, photos: PhotoSet, count: int, batch_size: int, cores: int) -> dict[str, Any]:
    """Measures limit, feed and ImageFolder for one number of photos."""
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
    before = _cpu_rate(recipe)
    scaling = Scaling.choose(Session(None, cores, 1, node_cpus=(cores,)), "1", gpu=False, cpus_per_worker=None)
    cpus = max(1, round(cores - scaling.worker_cpus))
    # Before Ray starts, because the processes of the DataLoader are forks of this one.
    peer = _image_folder(photos, dataset.with_name("files"), count, batch_size, cpus)
    with connect("local", num_cpus=cores) as session:
        feed = _measure_feed(plan, scaling, session, count)
    cpu_rate = statistics.mean([before, _cpu_rate(recipe)])
    return {
        "pictures_in": plan.described()["pictures_in"],
        "limit": {"cpus": cpus, "one_cpu_pictures_per_s": round(cpu_rate, 1), RATE: round(cpu_rate * cpus, 1)},
        "feed": feed,
        "image_folder": peer,
    }


def _cpu_rate(recipe: Recipe) -> float:
    """Returns the pictures per second that one CPU decodes and augments."""
    decoded, augmented = cpu_rates(recipe, _PROBE_S)
    return 1 / (1 / decoded + 1 / augmented)


def _measure_feed(plan: TrainPlan, scaling: Scaling, session: Session, count: int) -> dict[str, Any]:
    """Measures the feed of one worker, in an actor with the resources of a training worker."""
    import ray

    start = time.perf_counter()
    data = put_data(plan, session)
    task = plan.task(scaling, "")
    epochs = max(1, round(_COUNTED_PICTURES / count))
    worker: Any = ray.remote(num_cpus=scaling.worker_cpus)(_take_batches)
    figures: Any = ray.get(worker.remote(data, task, epochs))
    return {"whole_s": round(time.perf_counter() - start, 2), **figures}


def _take_batches(data: TrainData, task: TrainTask, epochs: int) -> dict[str, Any]:
    """Takes batches of a part of the first epoch and of `epochs` whole ones; returns the figures of the whole ones."""
    recipe = Recipe.model_validate_json(task.recipe)
    loader = make_loader(data, task, recipe, int(recipe.batch_size), 0, 1)
    steps = loader.steps_per_epoch
    warm_up = min(steps, max(1, _WARM_UP_PICTURES // int(recipe.batch_size)))
    loader.start(0, steps - warm_up, warm_up + epochs * steps)
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
    return {RATE: rates, "first_batch_s": firsts}


def _image_folder(photos: PhotoSet, folder: Path, count: int, batch_size: int, processes: int) -> dict[str, Any]:
    """Measures torchvision's ImageFolder and DataLoader; the files are hard links to the distinct photos."""
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
    for _ in range(_PEER_WARM_UP_BATCHES):
        next(batches)
    batch_count = max(1, _PEER_PICTURES // batch_size)
    start = time.perf_counter()
    for _ in range(batch_count):
        next(batches)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return {"processes": processes, RATE: round(batch_count * batch_size / seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())
