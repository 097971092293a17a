"""Jobs that are killed, stopped, or started twice, and still end with the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.connection.session import connect
from jobs.evaluate import plan_evaluate, run_evaluate
from jobs.filter import filter_dataset, plan_filter
from jobs.ingest import ingest, plan_ingest
from jobs.predict import plan_predict, predict_dataset
from jobs.train.checkpoint import local_folders
from tests.bundles import make_bundle
from tests.commands import write_recipe
from tests.datasets import content, rows, write_digits, write_photos, write_search
from tests.processes import LOOPBACK, family, listening
from tests.waiting import until

STEPS = "denoise(strength=0.03, search_size=15) | grayscale"
#: Kills per test; set STRIATE_KILLS=50 for a longer search.
KILLS = int(os.environ.get("STRIATE_KILLS", "3"))
#: Taken before `connect` sets variables in this process: a command must keep its Ray on loopback without them.
_ENVIRONMENT = dict(os.environ)
#: Commands that choose or exchange pictures, in a folder with the datasets `raw` and `other`; each is killed when one
#: more of these files appears.
CHOICES = {
    "measure": (("measure", "raw"), "raw/_measures/*.parquet"),
    "dedup": (("dedup", "raw", "out", "--dropped", "dropped"), "out/_reports/*.json"),
    "split": (("split", "raw", "out", "--split", "train=0.7,test=0.3"), "out/test/_reports/*.json"),
    "convert": (("convert", "raw", "out", "--to", "webdataset"), "out/.striate/_reports/*.json"),
    "merge": (("merge", "raw", "other", "out", "--on-clash", "prefix"), "out/_reports/*.json"),
    "remove": (("remove", "raw", "--keys", "keys.txt"), "raw/_removing/_reports/*.json"),
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a Ray that outlives the commands: starting one for each would take most of the time."""
    with connect("local", num_cpus=2):
        import ray

        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def raw(address: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Real photos in many small shards."""
    folder = tmp_path_factory.mktemp("raw")
    ingest(plan_ingest(str(write_photos(folder)), str(folder / "data"), shard_mb=0.05, verify=True))
    return str(folder / "data")


@pytest.fixture(scope="module")
def calm(raw: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The dataset of an undisturbed run."""
    destination = tmp_path_factory.mktemp("calm") / "data"
    filter_dataset(plan_filter(raw, str(destination), STEPS), workers="2")
    return content(destination)


def striate(*arguments: str, address: str | None = None, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Starts the command as a user does, in a new session; without an address it starts and ends its own Ray."""
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "striate"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=_ENVIRONMENT | ({} if address is None else {"RAY_ADDRESS": address}),
        cwd=cwd,
    )


def stderr_of(process: subprocess.Popen[bytes], code: int) -> str:
    """Returns the stderr of a command, which must end with `code` and without a traceback."""
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == code, stderr.decode()
    assert "Traceback" not in stderr.decode()
    return stderr.decode()


def unfinished(folder: Path) -> list[str]:
    """Returns leases, temporary files, and shards and rejects without a report."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    shards = [name for name in names if name.endswith(".parquet") and f"_reports/{Path(name).stem}.json" not in names]
    return [*shards, *(name for name in names if "_tmp-" in name or name.startswith("_leases"))]


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr.decode()


def committed(destination: Path, files: str = "_reports/*.json") -> int:
    return len(list(destination.glob(files)))


def kill_in_work(
    process: subprocess.Popen[bytes], destination: Path, chance: random.Random, files: str = "_reports/*.json"
) -> None:
    """Kills the command at a random moment after the next shard is committed, or after another of such files."""
    before = committed(destination, files)
    while process.poll() is None and committed(destination, files) == before:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0, 0.5))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def kill_when(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Kills the command as soon as the condition holds, unless it has ended."""
    until(lambda: process.poll() is not None or condition(), 240, every_s=0.001)
    process.kill()
    _, stderr = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), stderr.decode()


def test_a_filter_job_killed_at_random_moments_leaves_the_same_dataset(
    raw: str, calm: dict[str, Any], address: str, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    command = ("filter", raw, str(killed), "--steps", STEPS, "--workers", "2")
    chance = random.Random(20260723)
    early = striate(*command)
    with contextlib.suppress(subprocess.TimeoutExpired):
        early.wait(chance.uniform(0, 4))  # while Ray starts
    os.kill(early.pid, signal.SIGKILL)
    early.communicate()
    for number in range(max(1, KILLS - 1)):
        # The first command runs on its own Ray, which is killed with it.
        kill_in_work(striate(*command, address=address if number else None), killed, chance)
    assert 0 < committed(killed) < len([name for name in calm if name.startswith("_reports/")]), "killed after the end"
    finish(striate(*command, address=address))
    assert content(killed) == calm


def test_the_second_of_two_equal_commands_is_refused(
    raw: str, calm: dict[str, Any], address: str, tmp_path: Path
) -> None:
    command = ("filter", raw, str(tmp_path / "both"), "--steps", STEPS, "--workers", "2")
    one, two = striate(*command, address=address), striate(*command, address=address)
    until(lambda: one.poll() is not None or two.poll() is not None)
    accepted, refused = (two, one) if one.poll() is not None else (one, two)
    assert f"both is being written by process {accepted.pid} on " in stderr_of(refused, 2)
    finish(accepted)
    assert content(tmp_path / "both") == calm


@pytest.mark.faults
def test_a_stopped_job_reports_it_once_and_leaves_no_unfinished_shards(
    raw: str, calm: dict[str, Any], address: str, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    command = ("filter", raw, str(stopped), "--steps", STEPS, "--workers", "2")
    early = striate(*command)  # stopped while its own Ray starts
    until((stopped / "_leases").exists)
    early.terminate()
    assert stderr_of(early, 143) == "striate: stopped by SIGTERM; run the same command again to resume\n"
    assert not stopped.exists()
    for number, code, why in ((signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")):
        before = committed(stopped)
        process = striate(*command, address=None if number == signal.SIGTERM else address)
        until(lambda before=before: committed(stopped) > before)
        process.send_signal(number)
        process.send_signal(number)  # as an impatient user does
        last = f"striate: stopped by {why}; run the same command again to resume\n"
        lines = stderr_of(process, code).splitlines(keepends=True)
        assert lines[-1] == last
        assert lines.count(last) == 1
        assert unfinished(stopped) == []
        assert not processes(process.pid)
    finish(striate(*command, address=address))
    assert content(stopped) == calm


def test_a_failed_job_removes_its_unfinished_shards(raw: str, address: str, tmp_path: Path) -> None:
    source = shutil.copytree(raw, tmp_path / "source")
    damaged_shard = sorted(source.glob("part-*.parquet"))[10]
    damaged_shard.write_bytes(damaged_shard.read_bytes().replace(b"PAR1", b"PAR2"))
    command = ("filter", str(source), str(tmp_path / "failed"), "--steps", STEPS, "--workers", "2")
    process = striate(*command, address=address)
    assert f"{damaged_shard} is not a readable shard" in stderr_of(process, 1)
    assert committed(tmp_path / "failed") > 0
    assert unfinished(tmp_path / "failed") == []


@pytest.mark.faults
def test_a_training_uses_loopback_locks_its_folder_and_stops_at_signals(tmp_path: Path) -> None:
    data, out = str(tmp_path / "data"), tmp_path / "lenet"
    finish(striate("ingest", str(write_digits(tmp_path)), data))
    command = ("train", write_recipe(tmp_path, data, epochs=1000), "--out", str(out), "--workers", "2")
    one, two = striate(*command), striate(*command)
    until(lambda: one.poll() is not None or two.poll() is not None)
    training, refused = (two, one) if one.poll() is not None else (one, two)
    assert f"lenet is being written by process {training.pid} on " in stderr_of(refused, 2)
    for number, code, why in ((signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")):
        before = set(out.glob("checkpoints/run/step-*"))
        until(lambda before=before: set(out.glob("checkpoints/run/step-*")) - before)
        sockets = listening(family(training.pid))
        assert len(sockets) > 10, "Ray, its workers and the training workers listen on ports"
        assert [each for each in sockets if each[0] not in LOOPBACK] == []
        training.send_signal(number)
        assert stderr_of(training, code).endswith(
            f"\nstriate: stopped by {why}; run the same command again to resume\n"
        )
        assert unfinished(out) == []
        until(lambda pid=training.pid: not processes(pid))  # a worker may end a moment after its driver
        if number == signal.SIGINT:
            training = striate(*command)
    assert not local_folders(str(out))


@pytest.mark.faults
def test_a_prediction_killed_at_random_moments_leaves_the_same_dataset(raw: str, address: str, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    bundle = make_bundle(tmp_path / "bundle", model="resnet18", size=96)
    predict_dataset(plan_predict(bundle, raw, str(calm), features=True), workers="2", gpu=False)
    command = ("predict", bundle, raw, str(killed), "--workers", "2", "--no-gpu", "--features")
    chance = random.Random(11)
    for _ in range(max(1, KILLS // 2)):
        kill_in_work(striate(*command, address=address), killed, chance)
    assert 0 < committed(killed) < committed(calm), "the kills must fall before the end"
    finish(striate(*command, address=address))
    assert content(killed) == content(calm)


@pytest.mark.faults
def test_an_evaluation_killed_at_random_moments_gives_the_same_numbers(raw: str, address: str, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    bundle = make_bundle(tmp_path / "bundle", model="resnet18", size=96)
    run_evaluate(plan_evaluate([bundle], raw, report=str(calm)), workers="2", gpu=False)
    command = ("evaluate", bundle, raw, "--report", str(killed), "--workers", "2", "--no-gpu")
    chance = random.Random(12)
    for _ in range(max(1, KILLS // 2)):
        kill_in_work(striate(*command, address=address), killed, chance)
    assert 0 < committed(killed) < committed(calm), "killed after the end"
    finish(striate(*command, address=address))
    expected, numbers = (json.loads((folder / "summary.json").read_bytes()) for folder in (calm, killed))
    assert numbers.pop("throughput")["shards_resumed"] > 0
    assert expected.pop("throughput")["shards_resumed"] == 0
    assert numbers == expected
    assert unfinished(killed) == []


@pytest.mark.faults
def test_a_search_killed_at_random_moments_gives_the_same_answer(address: str, tmp_path: Path) -> None:
    calm, killed, units = tmp_path / "calm", tmp_path / "killed", "units/*.json"
    search = ("search", *write_search(tmp_path), "--test", str(tmp_path / "test"), "--workers", "2", "--out")
    finish(striate(*search, str(calm), address=address))
    again = (*search, str(killed))
    chance = random.Random(14)
    for number in range(max(1, KILLS - 1)):
        # The first command runs on its own Ray, which is killed with it.
        kill_in_work(striate(*again, address=address if number else None), killed, chance, units)
    kept = content(killed / "units")
    assert 0 < len(kept) < committed(calm, units), "killed after the end"
    # Between the look at the test pictures and the answer; where the command was faster, once more.
    record, before = killed / "search.json", shutil.copytree(killed, tmp_path / "before")
    for _ in range(5):
        kill_when(lambda: '"pictures": "test"' in record.read_text(), striate(*again, address=address))
        if not (killed / "answer.json").exists():
            break
        shutil.rmtree(killed)
        shutil.copytree(before, killed)
    assert '"pictures": "test"' in record.read_text()
    assert not (killed / "answer.json").exists()
    finish(striate(*again, address=address))
    assert kept.items() <= content(killed / "units").items(), "something was computed twice"
    assert answer_of(killed) == answer_of(calm)
    assert answer_of(calm)["looks"] == {"confirmation": 1, "test": 1}
    assert unfinished(killed) == []


def answer_of(search: Path) -> dict[str, Any]:
    """The answer of a search without what a clock measures."""
    answer = json.loads((search / "answer.json").read_bytes())
    for gain in (*answer["finalists"], answer["test"]):
        del gain["filter_ms"]
    del answer["seconds"]
    return answer


@pytest.fixture(scope="module")
def copies(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photos, a third of them twice, in shards of one picture each."""
    folder = tmp_path_factory.mktemp("copies")
    photos = write_photos(folder)
    shutil.copytree(photos / "china", photos / "china-again")
    ingest(plan_ingest(str(photos), str(folder / "data"), shard_mb=0.001))
    return folder / "data"


@pytest.mark.faults
@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_killed_in_mid_work_leaves_the_same_bytes(
    name: str, copies: Path, address: str, tmp_path: Path
) -> None:
    command, pattern = CHOICES[name]
    work = tmp_path / "work"  # the same path for both runs, as histories name it

    def begin() -> None:
        shutil.rmtree(work, ignore_errors=True)
        for dataset in ("raw", "other"):
            shutil.copytree(copies, work / dataset)
        keys = rows(copies)["key"].to_pylist()
        (work / "keys.txt").write_text("".join(f"{key}\n" for key in keys[::2]))

    begin()
    finish(striate(*command, address=address, cwd=work))
    calm = content(work)
    begin()
    kill_when(lambda: list(work.glob(pattern)), striate(*command, address=address, cwd=work))
    if name == "remove":  # once more, while the new files are moved to their places
        manifest = work / "raw" / "_manifest.json"
        moving = b'"complete": false'
        kill_when(lambda: moving in manifest.read_bytes(), striate(*command, address=address, cwd=work))
    finish(striate(*command, address=address, cwd=work))
    assert content(work) == calm


@pytest.mark.faults
def test_killed_workers_are_replaced_and_the_dataset_is_the_same(
    raw: str, calm: dict[str, Any], tmp_path: Path
) -> None:
    chance, kills, runs = random.Random(7), 0, 0
    while kills < KILLS:
        runs += 1
        assert runs <= KILLS, "no run lasted long enough for a kill"
        killed = tmp_path / f"killed-{runs}"
        process = striate("filter", raw, str(killed), "--steps", STEPS, "--workers", "2")
        shards = 0
        while process.poll() is None and kills < KILLS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.02, 0.2))
            workers = worker_processes(process.pid)
            # One kill per commit: a shard that loses its worker four times ends the job, as it should.
            if workers and committed(killed) > shards:
                shards = committed(killed)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills += 1
        finish(process)
        assert content(killed) == calm


def worker_processes(session: int) -> list[int]:
    """Ids of the shard workers of the job whose driver leads the session."""
    return [pid for pid, name in processes(session).items() if name.startswith(b"ray::MapWorker(Map(striate_")]


def processes(session: int) -> dict[int, bytes]:
    """Command lines of the session's running processes, by process id."""
    command_lines: dict[int, bytes] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command_line = (entry / "cmdline").read_bytes()
            # A process that has ended has none, and stays until its new parent, process 1, collects its exit status.
            if command_line and os.getsid(int(entry.name)) == session:
                command_lines[int(entry.name)] = command_line
    return command_lines


@pytest.mark.faults
def test_a_refused_training_ends_with_2_every_time(raw: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, raw, 1)
    command = ("train", recipe, "--out", str(tmp_path / "out"), "--set", "loss.class_weights={bird: 2}")
    for _ in range(10):
        together = [striate(*command) for _ in range(4)]
        for process in together:
            _, stderr = process.communicate(timeout=240)
            assert (process.returncode, b"there is no class 'bird'" in stderr) == (2, True), stderr.decode()
