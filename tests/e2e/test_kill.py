"""SIGKILL at random moments, the same command again, and the same bytes in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from tests.bundles import make_bundle
from tests.datasets import content, write_photos

STEPS = "denoise(strength=0.03, search_size=21) | grayscale"
KILLS = 10


def striate(*arguments: str) -> subprocess.Popen[bytes]:
    """The command as a user starts it, in a session of its own."""
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "striate"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr.decode()


def committed(dataset: Path) -> int:
    return len(list(dataset.glob("_reports/*.json")))


def test_a_driver_killed_at_ten_random_moments_leaves_the_dataset_of_an_undisturbed_run(tmp_path: Path) -> None:
    raw, calm, killed = tmp_path / "raw", tmp_path / "calm", tmp_path / "killed"
    finish(striate("ingest", str(write_photos(tmp_path)), str(raw), "--shard-mb", "0.05", "--verify"))
    finish(striate("filter", str(raw), str(calm), "--steps", STEPS, "--workers", "2"))
    chance = random.Random(20260723)
    for _ in range(KILLS):
        before = committed(killed)
        process = striate("filter", str(raw), str(killed), "--steps", STEPS, "--workers", "2")
        # Early kills fall on the start of Ray, the others on shards in work.
        early = chance.random() < 0.2
        with contextlib.suppress(subprocess.TimeoutExpired):
            while not early and process.poll() is None and committed(killed) == before:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
            process.wait(chance.uniform(0, 4 if early else 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert 0 < committed(killed) < committed(calm), "the kills must fall before the end"
    finish(striate("filter", str(raw), str(killed), "--steps", STEPS, "--workers", "2"))
    assert content(killed) == content(calm)


def test_a_prediction_killed_at_random_moments_goes_on_and_leaves_the_same_dataset(tmp_path: Path) -> None:
    raw, calm, killed = tmp_path / "raw", tmp_path / "calm", tmp_path / "killed"
    finish(striate("ingest", str(write_photos(tmp_path)), str(raw), "--shard-mb", "0.05"))
    bundle = make_bundle(tmp_path / "bundle", model="resnet18", size=96)
    predict = ("predict", bundle, str(raw), "--workers", "2", "--no-gpu", "--features")
    finish(striate(*predict[:3], str(calm), *predict[3:]))
    chance = random.Random(11)
    for _ in range(3):
        before = committed(killed)
        process = striate(*predict[:3], str(killed), *predict[3:])
        while process.poll() is None and committed(killed) == before:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert 0 < committed(killed) < committed(calm), "the kills must fall before the end"
    finish(striate(*predict[:3], str(killed), *predict[3:]))
    assert content(killed) == content(calm)


def test_workers_killed_ten_times_are_replaced_and_the_dataset_is_the_same(tmp_path: Path) -> None:
    raw, calm = tmp_path / "raw", tmp_path / "calm"
    finish(striate("ingest", str(write_photos(tmp_path)), str(raw), "--shard-mb", "0.05"))
    finish(striate("filter", str(raw), str(calm), "--steps", STEPS, "--workers", "2"))
    chance, kills, runs = random.Random(7), 0, 0
    while kills < KILLS:
        runs += 1
        assert runs <= KILLS, "no run lasted long enough for a kill"
        killed = tmp_path / f"killed-{runs}"
        process = striate("filter", str(raw), str(killed), "--steps", STEPS, "--workers", "2")
        seen = 0
        while process.poll() is None and kills < KILLS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.02, 0.2))
            workers = worker_processes(process.pid)
            # One kill a commit: a shard that lost its worker four times would be given up, as it should.
            if workers and committed(killed) > seen:
                seen = committed(killed)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills += 1
        finish(process)
        assert content(killed) == content(calm)


def worker_processes(session: int) -> list[int]:
    """The shard workers of the job whose driver leads this session."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            name = (entry / "cmdline").read_bytes()
            if name.startswith(b"ray::ShardWorker") and os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
    return found
