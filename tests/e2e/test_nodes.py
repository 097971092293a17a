"""A Ray of five nodes on this machine, started by `striate cluster up`: work spreads over the nodes, and a lost node
costs only time. Storage is S3, as for nodes that share no disk.

Several tests kill one node of the cluster, so their order matters: all nodes run at the start, and the head goes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.connection.session import connect
from jobs.choosing.dedup import dedup_dataset, plan_dedup
from jobs.choosing.measure import measure_dataset, plan_measure
from jobs.choosing.split import plan_split, split_dataset
from jobs.exchange.convert import convert_dataset, plan_convert
from jobs.ingest import ingest, plan_ingest
from library.dataset.manifest import load_manifest
from tests.bundles import make_bundle
from tests.commands import SLOW, Commands, check_same_answer, down, finished, up, write_recipe
from tests.conftest import S3Server
from tests.datasets import content, write_digits, write_photos, write_search
from tests.plugins import HALVE, write_plugin
from tests.processes import LOOPBACK, command, family, listening
from tests.waiting import until

pytestmark = pytest.mark.cluster

BUCKET = "nodes"
NODES = 5
#: Ray kills a process that has had no head for this long, without a message; its default is a minute.
_SOON = {"RAY_gcs_rpc_server_reconnect_timeout_s": "30"}


class Nodes(Commands):
    """The cluster, with the environment in which commands reach it and its storage."""

    def __init__(self, environment: dict[str, str], root: Path, bucket: str = BUCKET) -> None:
        super().__init__(root, bucket)
        self.environment, self.nodes = environment, list[dict[str, Any]]()
        self.holder: subprocess.Popen[bytes]

    def up(self, count: int) -> None:
        """Starts the cluster with `count` nodes of one CPU."""
        self.holder = self.start("cluster", "up", "--nodes", str(count), "--cpus-per-node", "1", "--json")
        result = up(self.holder)
        self.environment["RAY_ADDRESS"], self.nodes = result["address"], result["nodes"]

    def popen(self, *arguments: str, cwd: Path | None = None, **more: str) -> subprocess.Popen[bytes]:
        """Starts the command as a user does; `more` is added to its environment."""
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "striate"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment | more,
            cwd=cwd,
        )

    def lose_worker(self) -> None:
        """Kills a worker of the running job with SIGKILL."""
        mapping = "ray::MapWorker(Map(striate_"
        os.kill(next(pid for pid in family(self.holder.pid) if mapping in command(pid)), signal.SIGKILL)

    def lose(self, number: int = -1) -> str:
        """Kills a node (the last by default) with SIGKILL and returns its id in Ray."""
        node = self.nodes.pop(number)
        os.kill(node["pid"], signal.SIGKILL)
        return str(node["node_id"])


@pytest.fixture(scope="module")
def nodes(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Nodes of one CPU, with a token, which is Ray's default."""
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text("0123456789abcdef" * 4)
    # Without the variables that a Ray of other tests has set in this process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= s3_server.environment()
    environment |= {"RAY_AUTH_TOKEN_PATH": str(home / "token")}
    s3_server.make_bucket(BUCKET)
    cluster = Nodes(environment, s3_server.root)
    try:
        cluster.up(NODES)
        yield cluster
        down(cluster.holder)
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def raw(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Real photos in many small shards."""
    folder = tmp_path_factory.mktemp("photos")
    nodes.run("ingest", str(write_photos(folder)), f"s3://{BUCKET}/raw", "--shard-mb", "0.05")
    return f"s3://{BUCKET}/raw"


@pytest.fixture(scope="module")
def calm(nodes: Nodes, raw: str) -> dict[str, Any]:
    """The dataset that slow steps give when no node is lost."""
    nodes.run("filter", raw, f"s3://{BUCKET}/calm", "--steps", SLOW, "--limit", "60")
    return content(nodes.folder("calm"))


@pytest.fixture(scope="module")
def digits(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("digits")
    nodes.run("ingest", str(write_digits(folder, 200)), f"s3://{BUCKET}/digits", "--shard-mb", "0.02")
    return f"s3://{BUCKET}/digits"


def test_the_nodes_listen_on_loopback_only(nodes: Nodes) -> None:
    sockets = listening(family(nodes.holder.pid))
    assert len(sockets) > 2 * NODES, "each node listens somewhere"
    assert [each for each in sockets if each[0] not in LOOPBACK] == []


def test_the_doctor_examines_every_node(nodes: Nodes) -> None:
    checks: list[dict[str, str]] = nodes.run("doctor", f"s3://{BUCKET}/probe")["checks"]
    named = [check["name"] for check in checks]
    for node in nodes.nodes:
        assert f"node 127.0.0.1 ({node['node_id'][:8]})" in named
    assert {"ok"} == {check["verdict"] for check in checks if check["name"].startswith(("node", "clock", "storage"))}
    (versions,) = [check["facts"] for check in checks if check["name"] == "versions of nodes"]
    assert versions == f"the same on {NODES} nodes"
    assert len([name for name in named if name.startswith("storage from")]) == NODES + 1
    assert not nodes.folder("probe").exists()


def test_a_filter_job_on_all_nodes_gives_the_bytes_of_one_worker(nodes: Nodes, raw: str) -> None:
    nodes.run("filter", raw, f"s3://{BUCKET}/spread", "--steps", "grayscale | resize(64)")
    nodes.run("filter", raw, f"s3://{BUCKET}/alone", "--steps", "grayscale | resize(64)", "--workers", "1")
    assert len(nodes.shards_by_node("spread")) >= 2
    assert len(nodes.shards_by_node("alone")) == 1
    assert content(nodes.folder("spread")) == content(nodes.folder("alone"))


def test_a_users_own_step_reaches_every_node(nodes: Nodes, raw: str, tmp_path: Path) -> None:
    arguments = (raw, f"s3://{BUCKET}/halved", "--steps", "halve(by=2) | resize(64)")
    nodes.run("filter", *arguments, "--plugin", write_plugin(tmp_path))
    assert len(nodes.shards_by_node("halved")) >= 2
    other_plugin = write_plugin(tmp_path, HALVE + "\n# other\n")
    out, _ = nodes.start("filter", *arguments, "--plugin", other_plugin, "--json").communicate(timeout=240)
    assert "holds the output of another job" in json.loads(out)["error"]


def test_a_path_that_differs_between_nodes_is_refused(nodes: Nodes, raw: str, tmp_path: Path) -> None:
    # This path is a different folder for each process, as a local path is on each machine.
    refused = nodes.start("filter", raw, "/proc/self/cwd/out", "--steps", "grayscale", "--json", cwd=tmp_path)
    out, _ = refused.communicate(timeout=240)
    result = json.loads(out)
    assert result["exit_code"] == 2
    assert "does not see the same files there" in result["error"]
    assert "s3://" in result["error"]
    assert not list(tmp_path.iterdir()), "something was left behind"
    search = ("search", *write_search(tmp_path / "data"), "--out", "/proc/self/cwd/out", "--json")
    out, _ = nodes.start(*search, cwd=tmp_path).communicate(timeout=240)
    assert json.loads(out)["exit_code"] == 2
    assert "/proc/self/cwd/out is a path of this machine" in json.loads(out)["error"]


def test_a_prediction_spreads_over_the_nodes(nodes: Nodes, raw: str, tmp_path: Path) -> None:
    # A local path is accepted because all of these nodes see the same disk.
    bundle = make_bundle(tmp_path / "bundle")
    nodes.run("predict", bundle, raw, f"s3://{BUCKET}/scored")
    nodes.run("predict", bundle, raw, f"s3://{BUCKET}/scored-alone", "--workers", "1")
    assert len(nodes.shards_by_node("scored")) >= 2
    assert content(nodes.folder("scored")) == content(nodes.folder("scored-alone"))


def test_a_training_on_two_nodes_learns_what_one_worker_learns(nodes: Nodes, digits: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, digits, 3)
    two = nodes.run("train", recipe, "--out", f"s3://{BUCKET}/two", "--workers", "2")
    one = nodes.run("train", recipe, "--out", f"s3://{BUCKET}/one")
    assert sorted(two["workers_by_node"].values()) == [1, 1]
    assert list(one["workers_by_node"].values()) == [1]
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
    nodes.check_weights("two", "one")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle slow enough for a node to be lost during its predictions."""
    return make_bundle(tmp_path_factory.mktemp("large"), model="resnet18", size=224)


@pytest.fixture(scope="module")
def scored(nodes: Nodes, raw: str, large: str) -> dict[str, Any]:
    """The predictions of `large` when no node is lost."""
    nodes.run("predict", large, raw, f"s3://{BUCKET}/scored-calm", "--runtime", "eager")
    return content(nodes.folder("scored-calm"))


def runs(node: dict[str, Any], what: str) -> bool:
    """Whether a worker of the node has `what` in its command line. Workers are children of the node's raylet."""
    raylets = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_raylet(int(path.name), node["node_id"])]
    return any(what in command(pid) for raylet in raylets for pid in family(raylet))


def _is_raylet(pid: int, node_id: str) -> bool:
    name, _, arguments = command(pid).partition(" ")
    return name.endswith("/raylet") and f"--node_id={node_id} " in arguments


def test_a_node_lost_in_a_filter_job_changes_no_byte(nodes: Nodes, raw: str, calm: dict[str, Any]) -> None:
    arguments = ("--steps", SLOW, "--limit", "60", "--json")
    process = nodes.start("filter", raw, f"s3://{BUCKET}/lossy", *arguments)
    nodes.until_shards(process, "lossy", 4)
    assert runs(nodes.nodes[-1], "ray::MapWorker(Map(striate_")
    nodes.lose()
    finished(process)
    assert content(nodes.folder("lossy")) == calm


def test_a_node_lost_in_a_prediction_changes_no_byte(
    nodes: Nodes, raw: str, large: str, scored: dict[str, Any]
) -> None:
    process = nodes.start("predict", large, raw, f"s3://{BUCKET}/scored-lossy", "--runtime", "eager", "--json")
    nodes.until_shards(process, "scored-lossy", 2)
    assert runs(nodes.nodes[-1], "ray::MapWorker(Map(striate_")
    nodes.lose()
    finished(process)
    assert content(nodes.folder("scored-lossy")) == scored


def test_a_node_lost_in_a_training_of_two_workers_is_replaced(nodes: Nodes, digits: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, digits, 100)
    # More than half of a node's CPU each, so that two workers do not fit on one node.
    arguments = ("--workers", "2", "--cpus-per-worker", "0.6", "--json")
    process = nodes.start("train", recipe, "--out", f"s3://{BUCKET}/replaced", *arguments)
    first = nodes.until_checkpoint(process, "replaced")
    # Any node but the head.
    (at_work, *_) = [n for n, node in enumerate(nodes.nodes) if n and runs(node, "ray::RayTrainWorker")]
    lost_node = nodes.lose(at_work)
    result = finished(process)
    assert sorted(result["workers_by_node"].values()) == [1, 1]
    assert lost_node not in result["workers_by_node"]
    nodes.check_resumed("replaced", first, 100)


def test_an_elastic_training_that_loses_a_node_continues_on_the_other(
    nodes: Nodes, digits: str, tmp_path: Path
) -> None:
    while len(nodes.nodes) > 2:  # earlier tests may have killed some
        nodes.lose()
    recipe = write_recipe(tmp_path, digits, 100)
    # More than half of a node's CPU each, so that two workers do not fit on one node.
    elastic = ("--workers", "1-2", "--cpus-per-worker", "0.6")
    process = nodes.start("train", recipe, "--out", f"s3://{BUCKET}/elastic", *elastic, "--json")
    first = nodes.until_checkpoint(process, "elastic")
    assert all(runs(node, "ray::RayTrainWorker") for node in nodes.nodes)
    lost_node = nodes.lose()
    result = finished(process)
    assert result["workers_by_node"].keys() == {nodes.nodes[0]["node_id"]} != {lost_node}
    nodes.check_resumed("elastic", first, 100)


@pytest.fixture
def pair(nodes: Nodes, s3_server: S3Server, tmp_path: Path) -> Iterator[Nodes]:
    """Two nodes of one CPU, beside the others, with a bucket of this test's own."""
    bucket = tmp_path.name.replace("_", "-")
    s3_server.make_bucket(bucket)
    cluster = Nodes(dict(nodes.environment), s3_server.root, bucket)
    try:
        cluster.up(2)
        yield cluster
        down(cluster.holder)
    finally:
        cluster.end()


def test_choosing_on_two_nodes_through_kills_gives_the_digests_of_one(pair: Nodes, tmp_path: Path) -> None:
    photos, calm = write_photos(tmp_path), tmp_path / "calm"
    shutil.copytree(photos / "china", photos / "china-again")

    def choose(command: str, files: str, lose: Callable[[], object], *arguments: str) -> Any:
        """Runs the command on the bucket and loses something as soon as it has written four of the files."""
        uris = [f"s3://{pair.bucket}/{one}" if one in ("raw", "unique", "wds", "splits") else one for one in arguments]
        process = pair.start(command, *uris, "--json")
        until(lambda: process.poll() is not None or len(list(pair.folder("").glob(files))) > 3, 240)
        assert process.poll() is None, "the command ended before anything was killed"
        lose()
        return finished(process)

    pair.run("ingest", str(photos), f"s3://{pair.bucket}/raw", "--shard-mb", "0.001")
    choose("measure", "raw/_measures/*.parquet", pair.lose_worker, "raw")
    choose("dedup", "unique/_reports/*.json", pair.lose_worker, "raw", "unique", "--disagreeing", "best")
    exported = choose("convert", "wds/*.tar", pair.lose_worker, "unique", "wds", "--to", "webdataset")
    choose("split", "splits/test/_reports/*.json", pair.lose, "unique", "splits", "--split", "train=0.7,test=0.3")

    raw, unique, wds, splits = (str(calm / name) for name in ("raw", "unique", "wds", "splits"))
    with connect("local", num_cpus=2):
        ingest(plan_ingest(str(photos), raw, shard_mb=0.001))
        measure_dataset(plan_measure(raw))
        dedup_dataset(plan_dedup(raw, unique, disagreeing="best"))
        assert exported["digest"] == convert_dataset(plan_convert(unique, wds, "webdataset")).digest
        split_dataset(plan_split(unique, splits, split="train=0.7,test=0.3"))
    assert content(pair.folder("raw/_measures")) == content(calm / "raw" / "_measures")
    for name in ("raw", "unique", "splits/train", "splits/test"):
        # The digests of whole manifests differ, as histories name the source.
        one, other = load_manifest(str(pair.folder(name))), load_manifest(str(calm / name))
        assert (one.tally, one.shards, one.rejects) == (other.tally, other.shards, other.rejects), name


def test_a_search_on_two_nodes_answers_the_same_when_one_is_lost(pair: Nodes, tmp_path: Path) -> None:
    # So many that some are left to begin once the slowest node has started its worker.
    search = ("search", *write_search(tmp_path, epochs=20), "--seeds", "16", "--out")
    calm = pair.run(*search, f"s3://{pair.bucket}/calm")
    assert calm["trainings_by_node"].keys() == {node["node_id"] for node in pair.nodes}
    assert sum(calm["trainings_by_node"].values()) == calm["trainings"]
    process, units = pair.start(*search, f"s3://{pair.bucket}/lossy", "--json"), pair.folder("lossy/units")
    lost = pair.nodes[-1]
    until(
        lambda: (
            process.poll() is not None
            or (len(list(units.glob("*.json"))) > 7 and runs(lost, "ray::ResourceTrainable.train"))
        ),
        240,
    )
    assert process.poll() is None, "the command ended before anything was killed"
    pair.lose()
    lossy = finished(process)
    assert lossy["trainings_by_node"][pair.nodes[0]["node_id"]] > calm["trainings"] / 2
    check_same_answer(lossy, calm)


def test_a_wrong_token_is_refused(nodes: Nodes, raw: str) -> None:
    arguments = ("filter", raw, f"s3://{BUCKET}/stolen", "--steps", "grayscale")
    process = nodes.start(*arguments, RAY_AUTH_TOKEN="f" * 64)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "token" in errors.decode().lower()
    assert not nodes.folder("stolen").exists()
    # The token is the reason: with the right one the same command is accepted.
    nodes.run("filter", raw, f"s3://{BUCKET}/accepted", "--steps", "grayscale", "--limit", "1")


def test_a_token_is_sent_only_to_a_cluster_that_requires_one(nodes: Nodes, raw: str) -> None:
    unlocked = nodes.start("cluster", "up", "--nodes", "1", "--cpus-per-node", "1", "--json", RAY_AUTH_MODE="disabled")
    result = up(unlocked)
    arguments = ("filter", raw, f"s3://{BUCKET}/unlocked", "--steps", "grayscale", "--limit", "3", "--json")
    assert finished(nodes.start(*arguments, RAY_ADDRESS=result["address"]))["rows"] == 3
    left = family(unlocked.pid)
    hang_up(unlocked)
    assert unlocked.returncode == 0
    until(lambda: not [pid for pid in left if command(pid)])
    assert not Path(result["folder"]).exists()


def test_a_hangup_while_nodes_start_is_reported_and_leaves_nothing(nodes: Nodes) -> None:
    starting = nodes.start("cluster", "up", "--nodes", "2", "--json")
    folders: set[str] = set()

    def a_process_has_started() -> bool:
        lines = [command(pid) for pid in family(starting.pid)]
        folders.update(folder for line in lines for folder in re.findall("/tmp/striate-cluster-[^/ ]+", line))
        return bool(folders) or starting.poll() is not None

    until(a_process_has_started)
    left = family(starting.pid)
    result = json.loads(hang_up(starting))
    assert result["exit_code"] == starting.returncode == 128 + signal.SIGHUP
    assert "stopped by SIGHUP (a closed terminal) before all nodes had started" in result["error"]
    until(lambda: not [pid for pid in left if command(pid)])
    assert not [folder for folder in folders if Path(folder).exists()]


def hang_up(process: subprocess.Popen[bytes]) -> bytes:
    """Sends SIGHUP until the process ends, as a closed terminal does; returns the rest of stdout."""
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    return process.communicate()[0]


def lose_head(nodes: Nodes, process: subprocess.Popen[bytes]) -> None:
    """Kills the head while a command runs; the command must end and say how to resume. Then starts another head."""
    assert process.poll() is None, "the command ended before the head was killed"
    os.kill(nodes.nodes[0]["pid"], signal.SIGKILL)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 1, errors.decode()
    assert "Traceback" not in errors.decode()
    assert "waiting 20 s for it" in errors.decode()
    assert "the same command resumes it" in json.loads(out)["error"]
    out, errors = nodes.holder.communicate(timeout=240)
    assert nodes.holder.returncode == 1, errors.decode()
    assert "the head has ended" in json.loads(out)["error"]
    nodes.up(1)


def check_resumed_under_another_head(nodes: Nodes, dataset: str, arguments: tuple[str, ...]) -> None:
    """Kills the head during a shard job and runs the job again: finished shards are not done again."""
    process = nodes.start(*arguments, **_SOON)
    nodes.until_shards(process, dataset, 2)
    lose_head(nodes, process)
    run = nodes.run(*arguments[:-1])["run"]
    assert 2 <= run["shards_resumed"] < run["shards"]


def test_a_filter_job_whose_head_is_lost_resumes_under_another(nodes: Nodes, raw: str, calm: dict[str, Any]) -> None:
    arguments = ("filter", raw, f"s3://{BUCKET}/headless", "--steps", SLOW, "--limit", "60", "--json")
    check_resumed_under_another_head(nodes, "headless", arguments)
    assert content(nodes.folder("headless")) == calm


def test_a_prediction_whose_head_is_lost_resumes_under_another(
    nodes: Nodes, raw: str, large: str, scored: dict[str, Any]
) -> None:
    arguments = ("predict", large, raw, f"s3://{BUCKET}/scored-headless", "--runtime", "eager", "--json")
    check_resumed_under_another_head(nodes, "scored-headless", arguments)
    assert content(nodes.folder("scored-headless")) == scored


def test_a_training_whose_head_is_lost_resumes_under_another(nodes: Nodes, digits: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, digits, 100)
    arguments = ("train", recipe, "--out", f"s3://{BUCKET}/trained-headless", "--json")
    process = nodes.start(*arguments, **_SOON)
    first = nodes.until_checkpoint(process, "trained-headless")
    lose_head(nodes, process)
    nodes.run(*arguments[:-1])
    nodes.check_resumed("trained-headless", first, 100)
    nodes.run("train", recipe, "--out", f"s3://{BUCKET}/trained-calm")
    headless, calm = (nodes.folder(name) / "model.safetensors" for name in ("trained-headless", "trained-calm"))
    assert headless.read_bytes() == calm.read_bytes()
