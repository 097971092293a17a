"""Measures speed and memory of a filter job beside the limit of the machine and other tools.

Blurs photos of about 500x375 pixels with sigma 2 and encodes them as JPEG at quality 90; also selectors alone, a resize
beside Daft, and a tiny job. benchmarks/README.md defines contestants and figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common import striate_runs
from benchmarks.common.command_line import (
    add_cores,
    add_photos,
    at_least,
    existing_file,
    make_parser,
    run_benchmark,
    say,
    work_folder,
)
from benchmarks.common.photo_files import PhotoSet, make_photos
from benchmarks.common.report import summary
from benchmarks.filter import other_tools, pools, striate_filter
from benchmarks.filter.comparisons import goals, print_result
from benchmarks.filter.contestant import Contestant, Setup, measured_rounds

_DAFT_PYTHON = REPOSITORY / "out" / "daft" / "bin" / "python"
_TINY_PHOTOS = 100

_CONTESTANTS = (
    # The order within a round: contestants that are compared most closely are neighbours.
    Contestant("limit_memory", "limit: pool, simplejpeg + OpenCV, bytes in memory", pools.limit_memory),
    Contestant("striate", "striate: blur, shards to shards", striate_filter.filter_blur, needs_dataset=True),
    Contestant("actor_pool", "ray.util.ActorPool over the same shards", striate_filter.actor_pool, needs_dataset=True),
    Contestant("limit_files", "limit from files to files", pools.limit_files),
    Contestant("striate_select", "striate: selectors only", striate_filter.filter_select, needs_dataset=True),
    Contestant("daft_resize", "Daft: resize to 256x256", other_tools.daft_resize, needs_dataset=True),
    Contestant("striate_resize", "striate: resize to 256x256", striate_filter.filter_resize, needs_dataset=True),
    Contestant("tiny", "striate: tiny job, Ray is up", striate_filter.filter_tiny, needs_dataset=True),
    Contestant("tiny_again", "striate: a second tiny job", striate_filter.filter_tiny_again, needs_dataset=True),
    Contestant("tiny_command", "`striate filter`: tiny job", striate_filter.command_tiny, needs_dataset=True),
    Contestant("command", "`striate filter`: blur", striate_filter.command, quick=False, needs_dataset=True),
    Contestant("third", "striate: blur, a third", striate_filter.filter_blur_third, quick=False, needs_dataset=True),
    Contestant("pillow", "Pillow in a pool, files to files", pools.pillow_files, quick=False),
    Contestant("ray_data", "Ray Data as documented, Pillow", other_tools.ray_data_images, quick=False),
    Contestant("mogrify", "ImageMagick, one process per core", other_tools.mogrify_processes, quick=False),
    Contestant("mogrify_threads", "ImageMagick, its own threads", other_tools.mogrify_threads, quick=False),
)
_NAMES = [contestant.name for contestant in _CONTESTANTS]


def main() -> int:
    """Returns the exit code."""
    return run_benchmark(__file__, _parser(), _measure, print_result)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __file__,
        __doc__,
        "",
        "--photos 200 --shard-mb 1 --rounds 1 --out /tmp/results",
        "--only limit_memory --only striate",
    )
    add_photos(parser, disk_gb=5)
    add_cores(parser)
    parser.add_argument("--photos", type=at_least(1), default=12_000, help="number of photos (12000)")
    parser.add_argument("--shard-mb", type=float, default=16, help="shard size in MiB (16)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="rounds of the quick contestants (3)")
    parser.add_argument("--slow-photos", type=at_least(1), default=2_000, help="photos for ImageMagick, at most (2000)")
    parser.add_argument("--daft-python", type=existing_file, help="an interpreter with Daft (out/daft/bin/python)")
    parser.add_argument("--only", action="append", choices=_NAMES, metavar="NAME", help=f"one of {', '.join(_NAMES)}")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    chosen = [contestant for contestant in _CONTESTANTS if options.only is None or contestant.name in options.only]
    with work_folder(options.work) as work:
        say(f"writing {options.photos:,} photos to {work}")
        photos = make_photos(options.tar, work / "photos", options.photos)
        ingested = _ingest(options, photos, work) if any(contestant.needs_dataset for contestant in chosen) else None
        setup = Setup(
            photos=photos,
            dataset=str(work / "dataset"),
            tiny=str(work / "tiny"),
            work=work,
            cores=options.cores,
            slow_photos=options.slow_photos,
            daft_python=options.daft_python or (_DAFT_PYTHON if _DAFT_PYTHON.is_file() else None),
        )
        results = measured_rounds(chosen, setup, options.rounds)
    return {
        "parameters": {
            "photos": photos.facts | {"source": photos.source},
            "steps": striate_runs.BLUR,
            "encode": striate_runs.ENCODE,
            "selectors": striate_filter.SELECT,
            "resize": f"{striate_filter.RESIZE}, {striate_filter.RESIZE_ENCODE}",
            "tiny_photos": min(_TINY_PHOTOS, options.photos),
            "shard_mb": options.shard_mb,
            "rounds": options.rounds,
            "slow_photos": min(options.slow_photos, options.photos),
            "only": options.only,
        },
        "ingest": ingested,
        "contestants": {c.name: summary(c.what, results[c.name]) for c in chosen},
        "goals": goals(results),
    }


def _ingest(options: argparse.Namespace, photos: PhotoSet, work: Path) -> dict[str, Any]:
    """Writes the two datasets of `Setup`; returns the figures of the larger one."""
    ingested = striate_runs.make_dataset(photos.folder, work / "dataset", options.cores, options.shard_mb)
    say(f"ingest: {ingested['pictures_per_s']:,.0f} pictures/s")
    folder = work / "tiny-photos"
    folder.mkdir()
    for path in photos.paths[:_TINY_PHOTOS]:
        (folder / path.name).write_bytes(path.read_bytes())
    striate_runs.make_dataset(folder, work / "tiny", options.cores, None)
    return ingested


if __name__ == "__main__":
    sys.exit(main())
