"""Speed and memory of a filter job beside the limit of the machine and beside other tools.

Blur with sigma 2 and JPEG at quality 90 on photos of about 500x375; then selectors only, then a resize beside Daft,
then the cost of a tiny job. benchmarks/README.md says what each contestant does and how the figures are defined.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common import striate_runs
from benchmarks.common.measuring import Contestant, NotRunError, Results, Setup
from benchmarks.common.photo_files import PhotoSet, make_photos
from benchmarks.common.result_file import code_digest, goals, machine, print_tables, save, summary
from benchmarks.filter import actor_pool, other_tools, pools
from library.errors import StriateError, UsageError

_DAFT_PYTHON = REPOSITORY / "out" / "daft" / "bin" / "python"
_TINY = 100
_QUIET_LOAD = 0.5

_CONTESTANTS = (
    # In each round in this order: what is compared most closely stands side by side.
    Contestant("limit_memory", "limit: pool, simplejpeg + OpenCV, bytes in memory", pools.limit_memory),
    Contestant("striate", "striate: blur, shards to shards", striate_runs.filter_blur, needs_dataset=True),
    Contestant("actor_pool", "ray.util.ActorPool over the same shards", actor_pool.filter_blur, needs_dataset=True),
    Contestant("limit_files", "limit from files to files", pools.limit_files),
    Contestant("striate_select", "striate: selectors only", striate_runs.filter_select, needs_dataset=True),
    Contestant("daft_resize", "Daft: resize to 256x256", other_tools.daft_resize, needs_dataset=True),
    Contestant("striate_resize", "striate: resize to 256x256", striate_runs.filter_resize, needs_dataset=True),
    Contestant("tiny", "striate: tiny job, Ray is up", striate_runs.filter_tiny, needs_dataset=True),
    Contestant("tiny_again", "striate: a second tiny job", striate_runs.filter_tiny_again, needs_dataset=True),
    Contestant("tiny_command", "`striate filter`: tiny job", striate_runs.command_tiny, needs_dataset=True),
    Contestant("command", "`striate filter`: blur", striate_runs.command, quick=False, needs_dataset=True),
    Contestant("third", "striate: blur, a third", striate_runs.filter_blur_third, quick=False, needs_dataset=True),
    Contestant("pillow", "Pillow in a pool, files to files", pools.pillow_files, quick=False),
    Contestant("ray_data", "Ray Data as documented, Pillow", other_tools.ray_data_images, quick=False),
    Contestant("mogrify", "ImageMagick, a process a core", other_tools.mogrify_processes, quick=False),
    Contestant("mogrify_threads", "ImageMagick, its own threads", other_tools.mogrify_threads, quick=False),
)
_NAMES = [contestant.name for contestant in _CONTESTANTS]

_EXAMPLES = """examples:
  .venv/bin/python benchmarks/filter/filter_throughput.py
  .venv/bin/python benchmarks/filter/filter_throughput.py --photos 200 --shard-mb 1 --rounds 1 --out /tmp/results
  .venv/bin/python benchmarks/filter/filter_throughput.py --only limit_memory --only striate
"""


def main() -> int:
    """Exit code 0, 1 for a failure, 2 for misuse; a goal that is missed is no failure."""
    options = _parser().parse_args()
    try:
        _check(options)
        result = _measure(options)
        print_tables(result)
        print(f"\n{save(result, options.out)}")
    except StriateError as error:
        print(f"filter_throughput: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=12_000, help="how many photos (12000)")
    parser.add_argument(
        "--tar", type=Path, help="photos, repeated as needed (../shared/data/photos-500.tar, else synthetic)"
    )
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the JSON result"
    )
    parser.add_argument("--work", type=Path, help="folder for some 5 GB of temporary data, removed at the end")
    parser.add_argument("--shard-mb", type=float, default=16, help="shard size in MiB (16)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the quick contestants; others have one (3)")
    parser.add_argument("--slow-photos", type=int, default=2_000, help="at most so many photos for ImageMagick (2000)")
    parser.add_argument("--cores", type=int, help="run everything on so many cores (all)")
    parser.add_argument("--daft-python", type=Path, help="an interpreter that has Daft (out/daft/bin/python)")
    parser.add_argument("--only", action="append", choices=_NAMES, metavar="NAME", help=f"one of {', '.join(_NAMES)}")
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("photos", "rounds", "slow_photos"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    if sys.platform != "linux":
        raise UsageError("this benchmark reads /proc and ties processes to cores, so it runs on Linux only")
    usable = sorted(os.sched_getaffinity(0))
    if options.cores is None:
        options.cores = len(usable)
    if not 1 <= options.cores <= len(usable):
        raise UsageError(f"--cores {options.cores}: this machine lets us use 1 to {len(usable)}")
    # Whatever is started from here on inherits it, also tools that take every core they see.
    os.sched_setaffinity(0, usable[: options.cores])
    if options.daft_python is not None and not options.daft_python.is_file():
        raise UsageError(f"--daft-python {options.daft_python}: no such file")
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    chosen = [contestant for contestant in _CONTESTANTS if options.only is None or contestant.name in options.only]
    described = machine(options.cores)
    if described["load_1min_before"] > _QUIET_LOAD:
        _say(f"this machine is busy (load {described['load_1min_before']}); the result will say so, and mean little")
    with tempfile.TemporaryDirectory(prefix="striate-bench-", dir=options.work) as folder:
        work = Path(folder)
        _say(f"{options.photos:,} photos into {work}")
        photos = make_photos(options.tar, work / "photos", options.photos)
        setup, ingested = _setup(options, photos, work, any(contestant.needs_dataset for contestant in chosen))
        results = _rounds(chosen, setup, options.rounds)
    changed = code_digest() != described["code_digest"]
    if changed:
        _say("the code was changed while it was being measured: the rounds are not of one program")
    return {
        "benchmark": "filter_throughput",
        "machine": described,
        "code_changed_meanwhile": changed,
        "parameters": {
            "photos": photos.facts | {"source": photos.source},
            "steps": striate_runs.BLUR,
            "encode": striate_runs.ENCODE,
            "selectors": striate_runs.SELECT,
            "resize": f"{striate_runs.RESIZE}, {striate_runs.RESIZE_ENCODE}",
            "tiny_photos": min(_TINY, options.photos),
            "shard_mb": options.shard_mb,
            "rounds": options.rounds,
            "slow_photos": min(options.slow_photos, options.photos),
            "only": options.only,
        },
        "ingest": ingested,
        "contestants": {c.name: summary(c.what, results[c.name]) for c in chosen},
        "goals": goals(results),
    }


def _setup(
    options: argparse.Namespace, photos: PhotoSet, work: Path, needs_dataset: bool
) -> tuple[Setup, dict[str, Any] | None]:
    dataset, tiny, ingested = work / "dataset", work / "tiny", None
    if needs_dataset:
        ingested = striate_runs.make_dataset(photos.folder, dataset, options.cores, options.shard_mb)
        _say(f"ingest: {ingested['pictures_per_s']:,.0f} pictures/s")
        folder = work / "tiny-photos"
        folder.mkdir()
        for path in photos.paths[:_TINY]:
            (folder / path.name).write_bytes(path.read_bytes())
        striate_runs.make_dataset(folder, tiny, options.cores, None)
    daft_python = options.daft_python or (_DAFT_PYTHON if _DAFT_PYTHON.is_file() else None)
    return Setup(photos, str(dataset), str(tiny), work, options.cores, options.slow_photos, daft_python), ingested


def _rounds(chosen: list[Contestant], setup: Setup, rounds: int) -> Results:
    results: dict[str, list[dict[str, Any]] | str] = {contestant.name: [] for contestant in chosen}
    for number in range(rounds):
        for contestant in chosen:
            done = results[contestant.name]
            if isinstance(done, str) or (number and not contestant.quick):
                continue
            try:
                figures = contestant.run(setup).figures()
            except NotRunError as reason:
                results[contestant.name] = str(reason)
                _say(f"{contestant.name}: not run: {reason}")
                continue
            done.append(figures)
            rate, seconds = figures["pictures_per_s"], figures["seconds"]
            _say(f"round {number + 1}/{rounds}, {contestant.name}: {rate:,.0f} pictures/s, {seconds:.2f} s")
    return results


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
