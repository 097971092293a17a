"""Other programs in separate processes: Ray Data as documented, ImageMagick, Daft."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.common.measuring import NotRunError, Run, fresh_folder
from benchmarks.filter.contestant import Setup

_PROGRAMS = Path(__file__).parent / "programs"
_TIMEOUT_S = 3600


def ray_data_images(setup: Setup) -> Run:
    """Measures Ray Data; the start of Ray does not count, as for Striate."""
    with fresh_folder(setup.work / "ray-data") as out:
        program = [sys.executable, str(_PROGRAMS / "ray_data_images.py")]
        figures = _last_line([*program, str(setup.photos.folder), str(out), str(setup.cores)])
        pictures = sum(path.is_file() for path in out.iterdir())
    _check("the Ray Data program", pictures, len(setup.photos.names))
    return Run(pictures, figures.pop("seconds"), figures)


def mogrify_processes(setup: Setup) -> Run:
    """Measures one process per core, each with its share of the photos and one thread."""
    return _mogrify(setup, setup.cores, {"MAGICK_THREAD_LIMIT": "1", "OMP_NUM_THREADS": "1"})


def mogrify_threads(setup: Setup) -> Run:
    """Measures one process with ImageMagick's default number of threads."""
    return _mogrify(setup, 1, {})


def _mogrify(setup: Setup, processes: int, variables: dict[str, str]) -> Run:
    if shutil.which("mogrify") is None:
        raise NotRunError("`mogrify` is not installed: apt-get install -y imagemagick")
    names = setup.photos.names[: setup.slow_photos]
    with fresh_folder(setup.work / "mogrify") as out:
        command = ["mogrify", "-path", str(out), "-blur", "0x2", "-quality", "90"]
        start = time.perf_counter()
        running = [
            subprocess.Popen(
                [*command, *names[number::processes]],
                cwd=setup.photos.folder,
                env={**os.environ, **variables},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
        errors = [process.communicate(timeout=_TIMEOUT_S)[1] for process in running]
        seconds = time.perf_counter() - start
        pictures = sum(path.is_file() for path in out.iterdir())
    if any(process.returncode for process in running):
        raise NotRunError(f"mogrify failed: {' '.join(errors).strip()[-500:]}")
    _check("mogrify", pictures, len(names))
    return Run(pictures, seconds)


def daft_resize(setup: Setup) -> Run:
    if setup.daft_python is None:
        raise NotRunError(
            "Daft is not installed. It needs an older pyarrow than Striate, so give it its own environment: "
            "python -m venv out/daft && out/daft/bin/pip install daft; or name its interpreter with --daft-python"
        )
    with fresh_folder(setup.work / "daft") as out:
        figures = _last_line([str(setup.daft_python), str(_PROGRAMS / "daft_resize.py"), setup.dataset, str(out)])
        pictures = sum(pq.ParquetFile(path).metadata.num_rows for path in out.glob("*.parquet"))
    _check("Daft", pictures, len(setup.photos.names))
    return Run(pictures, figures.pop("seconds"), figures)


def _last_line(command: Sequence[str]) -> dict[str, Any]:
    """Runs a program and returns the JSON in its last line."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise NotRunError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _check(tool: str, pictures: int, expected: int) -> None:
    if pictures != expected:
        raise NotRunError(f"{tool} wrote {pictures} pictures instead of {expected}, so rates are not comparable")
