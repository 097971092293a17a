"""Tests a Ray on four simulated machines, which have networks, addresses, disks and shared memory of their own.

Ray is started as by `cluster/examples/local.yaml`. Storage is an S3 server.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from library.bundle.bundle import Bundle
from tests.bundles import make_bundle
from tests.commands import SLOW, Commands, check_same_answer, finished, write_recipe
from tests.conftest import S3Server, serve_s3
from tests.datasets import content, write_digits, write_photos, write_search
from tests.machines import Machine, Machines, machines, why_not
from tests.waiting import until

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent
BUCKET = "shared"
QUICK = "grayscale | resize(64)"


class Cluster(Commands):
    """Runs commands on the head of several machines.

    Attributes:
        machines: all machines, the head first.
        environment: variables of the commands.
        workers: the machines that are still running, without the head.
    """

    def __init__(self, machines: Machines, s3: S3Server, environment: Mapping[str, str]) -> None:
        super().__init__(s3.root, BUCKET)
        self.machines, self.environment = machines, environment
        self.workers: list[Machine] = list(machines.each[1:])

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Starts the command on the head, as a logged-in user does."""
        head = self.machines.each[0]
        environment = {**self.environment, "RAY_ADDRESS": f"{head.address}:6379"}
        return head.start(str(BIN / "striate"), *arguments, environment=environment, **options)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head without CPUs and three workers with one CPU each."""
    if (reason := why_not()) is not None:
        pytest.skip(f"this machine cannot simulate several: {reason}")
    root = tmp_path_factory.mktemp("machines")
    (root / "s3" / BUCKET).mkdir(parents=True)
    (root / "token").touch(0o600)
    (root / "token").write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(root / "token"), "HOME": str(root)}
    environment["RAY_SERVE_ENABLE_HA_PROXY"] = "1"  # as in cluster/examples/local.yaml
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    # Ray detects a machine without power after three seconds instead of a minute.
    environment |= {f"RAY_health_check_{name}": "1000" for name in ("initial_delay_ms", "period_ms", "timeout_ms")}
    environment |= {"RAY_health_check_failure_threshold": "3"}
    environment["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] = "5"  # instead of 65 as in cluster/examples/local.yaml
    environment["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "55"  # as there
    with machines(("head", "one", "two", "three")) as several, serve_s3(root / "s3", several.outside) as s3:
        environment |= s3.environment()
        head, *workers = several.each
        lead = ("--head", "--port=6379", "--num-cpus=0", f"--temp-dir={several.disk}/ray")
        start_ray(head, several, environment, *lead, f"--dashboard-host={head.address}")
        with ThreadPoolExecutor() as pool:
            join = (f"--address={head.address}:6379", "--num-cpus=1")
            list(pool.map(lambda worker: start_ray(worker, several, environment, *join), workers))
        started = Cluster(several, s3, environment)
        try:
            yield started
        finally:
            started.end()


def start_ray(machine: Machine, several: Machines, environment: Mapping[str, str], *arguments: str) -> None:
    with open(several.disk.parent / f"{several.disk.name}-{machine.name}.log", "w+b") as log:
        command = [str(BIN / "ray"), "start", "--disable-usage-stats", "--object-store-memory=100000000", *arguments]
        process = machine.start(*command, environment=environment, stdout=log, stderr=log)
        try:
            assert process.wait(90) == 0, Path(log.name).read_text()
        finally:
            Path(log.name).unlink()


@pytest.fixture(scope="module")
def raw(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Real photos in many small shards."""
    photos = str(write_photos(tmp_path_factory.mktemp("photos")))
    cluster.run("ingest", photos, f"s3://{BUCKET}/raw", "--shard-mb", "0.05")
    return f"s3://{BUCKET}/raw"


@pytest.fixture(scope="module")
def alone(cluster: Cluster, raw: str) -> dict[str, Any]:
    """The output of one worker."""
    cluster.run("filter", raw, f"s3://{BUCKET}/alone", "--steps", QUICK, "--workers", "1")
    return content(cluster.folder("alone"))


@pytest.fixture(scope="module")
def digits(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    digits = str(write_digits(tmp_path_factory.mktemp("digits"), 200))
    cluster.run("ingest", digits, f"s3://{BUCKET}/digits", "--shard-mb", "0.02")
    return f"s3://{BUCKET}/digits"


@pytest.fixture(scope="module")
def keys_of_the_head(cluster: Cluster) -> str:
    """A key file on the head's own disk."""
    file = f"{cluster.machines.disk}/keys"
    cluster.run("keys", "ann", "--file", file)
    return file


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle on this machine's disk, which all machines share except for `Machines.disk`."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def test_the_doctor_reports_no_problem_on_any_machine(cluster: Cluster) -> None:
    result = cluster.run("doctor", f"s3://{BUCKET}/probe")["checks"]
    named = " ".join(check["name"] for check in result)
    for machine in cluster.machines.each:
        assert f"node {machine.address} (" in named
    assert [check for check in result if check["verdict"] != "ok"] == []


def test_a_filter_job_spreads_over_machines_and_gives_the_bytes_of_one(
    cluster: Cluster, raw: str, alone: dict[str, Any]
) -> None:
    cluster.run("filter", raw, f"s3://{BUCKET}/spread", "--steps", QUICK)
    assert [len(cluster.shards_by_node(name)) for name in ("spread", "alone")] == [3, 1]
    assert content(cluster.folder("spread")) == alone


def test_a_disk_that_machines_do_not_share_is_refused(cluster: Cluster, raw: str) -> None:
    process = cluster.start("filter", raw, f"{cluster.machines.disk}/out", "--steps", "grayscale", "--json")
    result = json.loads(process.communicate(timeout=240)[0])
    assert result["exit_code"] == 2
    assert "does not see the same files there" in result["error"]


def test_a_training_spreads_over_machines_and_learns_what_one_learns(
    cluster: Cluster, digits: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, digits, 3)
    two = cluster.run("train", recipe, "--out", f"s3://{BUCKET}/two", "--workers", "2")
    one = cluster.run("train", recipe, "--out", f"s3://{BUCKET}/one")
    assert sorted(two["workers_by_node"].values()) == [1, 1]
    assert list(one["workers_by_node"].values()) == [1]
    cluster.check_weights("two", "one")


def test_a_search_spreads_over_machines_and_answers_as_on_one(cluster: Cluster, tmp_path: Path) -> None:
    # So many that some are left to begin once the slowest machine has started its worker.
    search = ("search", *write_search(tmp_path, epochs=20), "--seeds", "16", "--out")
    three = cluster.run(*search, f"s3://{BUCKET}/search-three")
    one = cluster.run(*search, f"s3://{BUCKET}/search-one", "--workers", "1")
    assert len(one["trainings_by_node"]) == 1
    assert len(three["trainings_by_node"]) == 3
    assert sum(three["trainings_by_node"].values()) == three["trainings"] == one["trainings"]
    assert three["facts"].pop("trainings by node, this run")
    assert three["outcome"] == "helps"
    check_same_answer(three, one)


def test_a_command_is_submitted_from_outside(cluster: Cluster, raw: str, alone: dict[str, Any], tmp_path: Path) -> None:
    url = f"http://{cluster.machines.each[0].address}:8265"
    arguments = ["submit", "--address", url, "--env", "AWS_*", "--", "filter", raw, f"s3://{BUCKET}/submitted"]
    completed = subprocess.run(
        [str(BIN / "striate"), *arguments, "--steps", QUICK],
        env=dict(cluster.environment),
        cwd=tmp_path,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr.decode()
    assert content(cluster.folder("submitted")) == alone


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--cpus-per-replica", "1"), "serve with --host 0.0.0.0 and --api-keys FILE"),
        (("--cpus-per-replica", "2"), "the largest machine of the cluster has 1"),
        (
            ("--cpus-per-replica", "1", "--replicas", "4"),
            "the replicas of all models need 4 CPUs, and the cluster has 3",
        ),
        (("--host", "0.0.0.0", "--cpus-per-replica", "1", "--api-keys", "{keys}"), "STRIATE_API_KEYS"),
    ],
)
def test_a_server_that_cannot_run_on_the_cluster_is_refused(
    cluster: Cluster, bundle: str, keys_of_the_head: str, arguments: tuple[str, ...], why: str
) -> None:
    process = cluster.start("serve", bundle, *[argument.format(keys=keys_of_the_head) for argument in arguments])
    _, errors = process.communicate(timeout=240)
    assert (process.returncode, why in errors.decode()) == (2, True), errors.decode()


@contextlib.contextmanager
def served(cluster: Cluster, bundle: str, folder: Path, replicas: int) -> Generator[tuple[str, dict[str, str]]]:
    """Serves a bundle on all machines during the block; yields the reported address, and headers with a key."""
    keys = str(folder / "keys")
    headers = {"Authorization": f"Bearer {cluster.run('keys', 'ann', '--file', keys)['key']}"}
    options = ("--runtime", "eager", "--cpus-per-replica", "1", "--replicas", str(replicas))
    try:
        yield cluster.run("serve", bundle, *options, "--host", "0.0.0.0", "--api-keys", keys)["address"], headers
    finally:
        end = [str(BIN / "serve"), "shutdown", "--yes", "--address", f"http://{cluster.machines.each[0].address}:8265"]
        subprocess.run(end, env=dict(cluster.environment), check=True, capture_output=True, timeout=240)


def answers(url: str, **request: Any) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.post(url, **request).status_code == 200
    return False


def test_every_machine_answers_for_the_whole_cluster(cluster: Cluster, bundle: str, tmp_path: Path) -> None:
    head = cluster.machines.each[0].address
    photo = next(write_photos(tmp_path).glob("china/*.jpg")).read_bytes()
    expected = Bundle.load(bundle, "cpu").predict(photo).classes[0]
    # One replica per worker: Serve has a proxy only on the head and on nodes with a replica.
    with served(cluster, bundle, tmp_path, replicas=3) as (address, headers):
        assert address == f"http://{head}:8000"
        for machine in cluster.machines.each:
            url = f"http://{machine.address}:8000/models/bundle/predict?top_k=1"
            until(lambda url=url: answers(url, content=photo, headers=headers))
            (answer,) = httpx.post(url, content=photo, headers=headers).json()["predictions"][0]["classes"]
            assert answer["class"] == expected[0]
            assert answer["probability"] == pytest.approx(expected[1], abs=1e-5)
            assert httpx.post(url, content=photo).status_code == 401
        again = cluster.start("serve", bundle, "--host", head, "--api-keys", str(tmp_path / "keys"))
        _, errors = again.communicate(timeout=240)
        assert f"--host {head}: Serve already runs on this cluster and listens on 0.0.0.0:8000" in errors.decode()


def test_a_machine_without_power_does_not_change_filtered_bytes(cluster: Cluster, raw: str) -> None:
    arguments = ("--steps", SLOW, "--limit", "60", "--json")
    process = cluster.start("filter", raw, f"s3://{BUCKET}/lossy", *arguments)
    cluster.until_shards(process, "lossy", 4)
    assert cluster.workers[-1].runs("ray::MapWorker(Map(striate_")
    cluster.workers.pop().kill()
    finished(process)
    finished(cluster.start("filter", raw, f"s3://{BUCKET}/calm", *arguments))
    assert content(cluster.folder("lossy")) == content(cluster.folder("calm"))


def test_an_elastic_training_continues_when_a_machine_loses_its_power(
    cluster: Cluster, digits: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, digits, 100)
    elastic = ("--workers", "1-2", "--cpus-per-worker", "0.6")
    process = cluster.start("train", recipe, "--out", f"s3://{BUCKET}/elastic", *elastic, "--json")
    first = cluster.until_checkpoint(process, "elastic")
    assert all(worker.runs("ray::RayTrainWorker") for worker in cluster.workers)
    cluster.workers.pop().kill()
    result = finished(process)
    assert list(result["workers_by_node"].values()) == [1]
    cluster.check_resumed("elastic", first, 100)


def test_requests_to_a_machine_without_power_get_an_answer(cluster: Cluster, tmp_path: Path) -> None:
    slow = make_bundle(tmp_path / "slow", model="resnet18", size=224)
    photo = next(write_photos(tmp_path).glob("china/*.jpg")).read_bytes()
    good = list[float]()

    def first_other(url: str, headers: dict[str, str]) -> int:
        """Sends requests for at most a minute; returns the first status that is not 200."""
        end = time.monotonic() + 60
        # If the server never closes the connection, this client does.
        with httpx.Client(timeout=30) as client:
            while (status := client.post(url, content=photo, headers=headers).status_code) == 200:
                good.append(time.monotonic())
                assert good[-1] < end, "no request has failed"
        return status

    with served(cluster, slow, tmp_path, replicas=1) as (address, headers), ThreadPoolExecutor(4) as pool:
        url = f"{address}/models/slow/predict"
        until(lambda: answers(url, content=photo, headers=headers))
        (machine,) = [worker for worker in cluster.workers if worker.runs("ray::ServeReplica:slow")]
        asking = [pool.submit(first_other, url, headers) for _ in range(4)]
        until(lambda: len(good) >= 8)
        cluster.workers.remove(machine)
        machine.kill()
        assert {request.result() for request in asking} <= {500, 503, 504}
