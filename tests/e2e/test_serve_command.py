"""Runs `striate serve` as a user does: behind HAProxy, replaced under load, killed under load, stopped."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import yaml

from jobs.cli.app import run
from library.bundle.bundle import Bundle
from library.imaging import codec
from library.runtimes.runtime import open_runtime
from library.steps import plugins
from serve.http.keys import new_key
from serve.http.schemas import InsidePart
from tests.bundles import CLASSES, PROBABILITY_TOLERANCE, make_bundle, make_pixel_bundle, near, pixels_of
from tests.conftest import free_port
from tests.datasets import write_cats_and_dogs
from tests.plugins import unloaded_afterwards, write_plugin
from tests.processes import LOOPBACK, command, family, listening
from tests.waiting import until

STRIATE = str(Path(sys.executable).parent / "striate")
#: The token of the Ray under test; a second process needs it to connect.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@dataclass
class Served:
    """A running `striate serve`.

    Attributes:
        process: the command itself.
        report: its JSON document on stdout.
        stderr: file with its other output.
    """

    process: subprocess.Popen[bytes]
    report: dict[str, Any]
    stderr: Path

    @property
    def url(self) -> str:
        return self.report["address"]

    def ids(self, kind: str) -> list[int]:
        """The ids of its processes whose command line begins with `kind`."""
        return [pid for pid in family(self.process.pid) if command(pid).startswith(kind)]


def slowly(port: int, beginning: bytes) -> bytes:
    """Sends the beginning of a request and returns the answer; the rest is never sent."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(beginning)
        while piece := connection.recv(10_000):
            answer += piece
    return answer


def answers_once_ready(url: str, names: tuple[str, ...], data: bytes) -> list[int]:
    """Statuses of requests to each model, over fresh connections, sent as soon as /readyz answers 200."""

    def is_ready() -> bool:
        try:
            return client.get(f"{url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    # One client: creating one reads all certificates, which takes longer than a request.
    with httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        until(is_ready, seconds=300)
        return [
            client.post(f"{url}/models/{name}/predict", content=data).status_code for _ in range(20) for name in names
        ]


def start(folder: Path, *arguments: str) -> Served:
    stderr = folder / "stderr.txt"
    environment = os.environ | TOKEN
    # A Ray in this process sets this variable; the command must set it itself.
    environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
    with open(stderr, "wb") as err:
        process = subprocess.Popen(
            [STRIATE, "serve", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    # A command that fails prints an error of several lines instead.
    assert line.rstrip().endswith(b"}"), line + process.stdout.read() + stderr.read_bytes()
    return Served(process, json.loads(line), stderr)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = write_cats_and_dogs(tmp_path_factory.mktemp("photos") / "pictures", each=40)
    return [path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bundles")
    lenets = {name: make_bundle(folder / name, seed=seed) for seed, name in enumerate(("one", "two"))}
    return lenets | {"other": make_pixel_bundle(folder / "other")}


@pytest.fixture(scope="module")
def at_first() -> list[int]:
    """Statuses of the first requests to `served`, sent as soon as it reports that it is ready."""
    return []


@pytest.fixture(scope="module")
def served(
    bundles: dict[str, str], photos: list[bytes], at_first: list[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    arguments = (bundles["one"], f"second={bundles['other']}", "--runtime", "eager", "--cpus-per-replica", "1")
    folder, port = tmp_path_factory.mktemp("serve"), free_port()

    def ask() -> None:
        at_first.extend(answers_once_ready(f"http://127.0.0.1:{port}", ("one", "second", "%6Fne"), photos[0]))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    server = start(folder, *arguments, "--port", str(port), "--access-log", str(folder / "access.log"))
    asking.join(300)
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


class Load:
    """Clients that send requests, each over one kept connection, until the block ends.

    Attributes:
        answers: all responses.
        bundles: ids of the bundles that have answered.
        errors: of requests without an answer.
    """

    def __init__(self, url: str, data: bytes, clients: int, pause_s: float = 0.0) -> None:
        self._url, self._data, self._pause_s = url, data, pause_s
        self.answers: list[httpx.Response] = []
        self.bundles: set[str] = set()
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stop.wait(self._pause_s):
                try:
                    answer = client.post(self._url, content=self._data)
                except httpx.HTTPError as error:
                    self.errors.append(error)
                    continue
                self.answers.append(answer)
                if answer.status_code == 200:
                    self.bundles.add(answer.json()["bundle_id"])


def test_a_ready_server_answers_for_every_model(served: Served, at_first: list[int]) -> None:
    assert at_first == [200] * 60


def test_a_body_with_a_too_large_content_length_is_refused_unread(served: Served) -> None:
    head = "POST /models/one/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    answer = slowly(int(served.url.rpartition(":")[2]), head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def ranked(prediction: dict[str, Any]) -> list[tuple[str, float]]:
    return [(each["class"], each["probability"]) for each in prediction["classes"]]


def test_models_answer_as_their_bundles_do(served: Served, bundles: dict[str, str], photos: list[bytes]) -> None:
    url = f"{served.url}/models/one/predict?top_k={len(CLASSES)}"
    bundle = Bundle.load(bundles["one"], "cpu")
    expected = [near(bundle.predict(data, len(CLASSES)).classes) for data in photos]
    with httpx.Client() as client:
        for data, classes in zip(photos, expected, strict=True):
            answer = client.post(url, content=data).json()
            assert ranked(answer["predictions"][0]) == classes
            assert answer["bundle_id"] == bundle.id
        files = [("file", (f"{number}.jpg", data)) for number, data in enumerate(photos[:60])]
        for prediction, classes in zip(client.post(url, files=files).json()["predictions"], expected, strict=False):
            assert ranked(prediction) == classes


def test_over_http_the_network_sees_the_bundles_own_pixels(
    served: Served, bundles: dict[str, str], photos: list[bytes]
) -> None:
    bundle = Bundle.load(bundles["other"], "cpu")
    url = f"{served.url}/models/second/predict?top_k={len(bundle.classes)}"
    with httpx.Client(timeout=60) as client:
        for first in range(0, len(photos), 50):
            some = photos[first : first + 50]
            files = [("file", (f"{number}.jpg", data)) for number, data in enumerate(some)]
            for data, prediction in zip(some, client.post(url, files=files).json()["predictions"], strict=True):
                probabilities = dict(ranked(prediction))
                pixels = pixels_of([probabilities[name] for name in bundle.classes])
                assert np.array_equal(pixels, bundle.prepare(data))


def test_tritons_client_gets_the_bundles_own_pixels_and_answers(
    served: Served, bundles: dict[str, str], photos: list[bytes]
) -> None:
    bundle = Bundle.load(bundles["other"], "cpu")
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        for first in range(0, len(photos), 50):
            some = photos[first : first + 50]
            tensor = triton.InferInput("image", [len(some)], "BYTES")
            tensor.set_data_from_numpy(np.array(some, object), binary_data=True)
            answer = client.infer("second", [tensor]).as_numpy("probabilities")
            prepared = [bundle.prepare(data) for data in some]
            assert np.array_equal([pixels_of(row) for row in answer], prepared)
            np.testing.assert_allclose(answer, bundle.probabilities(prepared), rtol=0, atol=PROBABILITY_TOLERANCE)


def test_the_explanation_of_the_best_class_is_a_picture(served: Served, photos: list[bytes]) -> None:
    answer = httpx.post(f"{served.url}/models/one/predict?explain=true", content=photos[0]).json()
    heat = codec.decode(base64.b64decode(answer["predictions"][0]["explanation"]))
    assert heat.shape[2] == 3


@pytest.mark.parametrize("name", ["one", "%6Fne"])  # to the model itself, and through the gateway
def test_every_part_of_the_inside_of_a_model_is_drawn(served: Served, photos: list[bytes], name: str) -> None:
    for part in get_args(InsidePart):
        answer = httpx.post(f"{served.url}/models/{name}/inside?part={part}", content=photos[0], timeout=60)
        assert answer.status_code == 200, answer.text
        assert codec.decode(answer.content).std() > 5
    refused = httpx.post(f"{served.url}/models/{name}/inside?part=occlusion&class=none", content=photos[0])
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:striate:usage")


def test_the_gateway_lists_the_served_models(served: Served) -> None:
    assert [model["name"] for model in httpx.get(f"{served.url}/models").json()["models"]] == ["one", "second"]
    assert httpx.get(f"{served.url}/readyz").json()["ready"]
    missing = httpx.post(f"{served.url}/models/third/predict", content=b"x")
    assert (missing.status_code, missing.json()["models"]) == (404, ["one", "second"])


def test_every_request_is_logged_in_the_access_log(served: Served, photos: list[bytes]) -> None:
    answers = [
        httpx.post(f"{served.url}/models/one/predict", content=photos[0], headers={"X-Request-Id": "mine"}),
        httpx.get(f"{served.url}/models"),
        httpx.get(f"{served.url}/models/third", headers={"X-Request-Id": "mine-2"}),
    ]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert (ids[0], ids[2]) == ("mine", "mine-2")
    assert re.fullmatch("[0-9a-f-]{36}", ids[1]), "a request without an id gets one"

    def logged() -> list[tuple[str, str | None, int]]:
        whole = served.stderr.with_name("access.log").read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return sorted((line["id"], line["model"], line["status"]) for line in lines if line["id"] in ids)

    # The server writes the line after it has sent the answer.
    until(lambda: len(logged()) >= len(ids))
    assert logged() == sorted([("mine", "one", 200), (ids[1], None, 200), ("mine-2", None, 404)])


def test_nothing_listens_beyond_loopback(served: Served) -> None:
    sockets = listening(family(served.process.pid))
    assert len(sockets) > 10, "Ray, HAProxy and the replicas all listen somewhere"
    assert [each for each in sockets if each[0] not in LOOPBACK] == []


def test_the_server_runs_behind_haproxy(served: Served) -> None:
    assert any("haproxy" in command(pid) for pid in family(served.process.pid))


def test_a_new_version_replaces_the_old_one_without_a_failed_request(
    served: Served, bundles: dict[str, str], photos: list[bytes], tmp_path: Path
) -> None:
    old, new = (Bundle.load(bundles[name], "cpu").id for name in ("one", "two"))
    (gcs,) = {address for pid in served.ids("") for address in gcs_addresses(pid)}
    # With pauses, because the new version needs the processor to start.
    with Load(f"{served.url}/models/one/predict", photos[0], clients=4, pause_s=0.02) as load:
        until(lambda: len(load.answers) > 20)
        again = start(
            tmp_path, f"one={bundles['two']}", "--runtime", "eager", "--cpus-per-replica", "1", "--address", gcs
        )
        assert again.process.wait(120) == 0
        until(lambda: new in load.bundles, seconds=120)
        count = len(load.answers)
        until(lambda: len(load.answers) > count + 50)
    assert load.errors == []
    assert [answer.text for answer in load.answers if answer.status_code != 200] == []
    assert load.bundles == {old, new}
    assert httpx.get(f"{served.url}/models/one").json()["bundle_id"] == new
    assert httpx.get(f"{served.url}/models/second").status_code == 200, "the other model stays"


def gcs_addresses(pid: int) -> list[str]:
    words = command(pid).split()
    return [word.partition("=")[2] for word in words if word.startswith("--gcs-address=")]


def test_a_killed_replica_fails_only_its_own_requests_and_is_replaced(served: Served, photos: list[bytes]) -> None:
    (replica,) = served.ids("ray::ServeReplica:second")
    with Load(f"{served.url}/models/second/predict", photos[0], clients=8) as load:
        until(lambda: len(load.answers) > 20)
        os.kill(replica, signal.SIGKILL)
        until(lambda: any(answer.status_code != 200 for answer in load.answers), seconds=120)
        until(lambda: load.answers[-1].status_code == 200, seconds=120)
        count = len(load.answers)
        until(lambda: len(load.answers) > count + 50)
    assert load.errors == []
    refused = [answer for answer in load.answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {503}
    for answer in refused:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["status"] == 503
    assert served.ids("ray::ServeReplica:second") != [replica]


def test_each_of_a_thousand_clients_gets_an_answer_or_a_refusal(served: Served, photos: list[bytes]) -> None:
    statuses: list[int | str] = []
    begin = threading.Barrier(1001)
    # One context for all: creating one reads all certificates, which takes longer than a request.
    context = ssl.create_default_context()

    def ask() -> None:
        begin.wait()
        try:
            url = f"{served.url}/models/one/predict"
            statuses.append(httpx.post(url, content=photos[0], timeout=120, verify=context).status_code)
        except httpx.HTTPError as error:
            statuses.append(repr(error))

    threading.stack_size(256 * 1024)
    threads = [threading.Thread(target=ask) for _ in range(1000)]
    for thread in threads:
        thread.start()
    threading.stack_size(0)
    begin.wait()
    for thread in threads:
        thread.join()
    assert len(statuses) == 1000
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 128
    assert httpx.get(f"{served.url}/readyz").json()["ready"]


def test_ctrl_c_ends_the_server_and_all_its_processes(served: Served) -> None:
    everyone = family(served.process.pid)
    os.kill(served.process.pid, signal.SIGINT)
    assert served.process.wait(30) == 0
    assert served.process.stdout is not None
    assert served.process.stdout.read() == b""
    assert served.stderr.read_text() == ""
    until(lambda: not [pid for pid in everyone if command(pid)])


@dataclass(frozen=True)
class Configured:
    """A server started from a config file: open to other machines, with a key, with ONNX Runtime."""

    served: Served
    port: int
    headers: dict[str, str]


@pytest.fixture(scope="module")
def configured(bundles: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Configured]:
    folder = tmp_path_factory.mktemp("configured")
    file, keys, port = folder / "serve.yaml", str(folder / "keys"), free_port()
    key, line = new_key("alice")
    Path(keys).write_text(f"{line}\n")
    options = ("--host", "0.0.0.0", "--port", str(port), "--api-keys", keys, "--runtime", "onnx")
    assert run(["serve", bundles["one"], *options, "--write-config", str(file)]) == 0
    document = yaml.safe_load(file.read_text())
    for application in document["applications"]:
        application["args"]["settings"]["body_timeout_s"] = 1.0
    file.write_text(yaml.safe_dump(document))
    served = start(folder, "--config", str(file))
    yield Configured(served, port, {"Authorization": f"Bearer {key}"})
    if served.process.poll() is None:
        os.kill(served.process.pid, signal.SIGINT)
        served.process.wait(30)


def test_a_config_file_is_served_on_one_open_port_and_only_with_a_key(
    configured: Configured,
) -> None:
    served = configured.served
    reached = {where for where in listening(family(served.process.pid)) if "127.0.0.1" not in where[0]}
    assert reached == {("0.0.0.0", configured.port)}
    answers = {path: httpx.get(served.url + path).status_code for path in ("/models", "/models/one", "/-/routes")}
    assert answers == {"/models": 401, "/models/one": 401, "/-/routes": 404}
    (model,) = httpx.get(served.url + "/models", headers=configured.headers).json()["models"]
    assert (model["name"], model["runtime"]["name"]) == ("one", "onnx")
    assert httpx.get(served.url + "/readyz", headers=configured.headers).status_code == 200
    assert httpx.head(served.url + "/models/%6Fne", headers=configured.headers).status_code == 200


def test_onnx_runtime_gives_the_same_answers_by_every_protocol(
    configured: Configured, bundles: dict[str, str], photos: list[bytes]
) -> None:
    bundle, url = Bundle.load(bundles["one"], "cpu"), configured.served.url
    ask = open_runtime(bundle, "onnx", threads=1).probabilities
    expected = np.concatenate([ask([bundle.prepare(data)]) for data in photos])
    files = [("file", (f"{number}.jpg", data)) for number, data in enumerate(photos)]
    probabilities: list[list[float]] = []
    for first in range(0, len(files), 50):
        answer = httpx.post(
            f"{url}/models/one/predict?top_k={len(CLASSES)}",
            files=files[first : first + 50],
            headers=configured.headers,
            timeout=60,
        ).json()
        shares = [{each["class"]: each["probability"] for each in one["classes"]} for one in answer["predictions"]]
        probabilities += [[share[name] for name in bundle.classes] for share in shares]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=PROBABILITY_TOLERANCE)
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        tensor = triton.InferInput("image", [50], "BYTES")
        tensor.set_data_from_numpy(np.array(photos[:50], object), binary_data=True)
        answer = client.infer("one", [tensor], headers=configured.headers).as_numpy("probabilities")
    np.testing.assert_allclose(answer, expected[:50], rtol=0, atol=PROBABILITY_TOLERANCE)


def test_an_incomplete_request_times_out_with_an_answer(configured: Configured) -> None:
    head = b"POST /models/one/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
    answer = slowly(configured.port, head + b"first")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert slowly(configured.port, b"no request\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_server_that_is_killed_while_haproxy_reloads_leaves_no_haproxy(configured: Configured) -> None:
    served = configured.served
    before = haproxies("striate-serve-", family(served.process.pid))
    folder = re.search(r"/\S*striate-serve-[^/]+", command(max(before)))
    assert folder
    # After the loss of a replica, Serve writes a new configuration and starts a successor with it.
    os.kill(served.ids("ray::ServeReplica:one")[0], signal.SIGKILL)
    until(lambda: haproxies(folder[0]) - before)
    served.process.kill()
    until(lambda: not haproxies(folder[0]))
    shutil.rmtree(folder[0])


def haproxies(folder: str, pids: Iterable[int] | None = None) -> set[int]:
    """The ids of processes that are or become HAProxy with a configuration in this folder; by default of all users."""
    everyone = (int(path.name) for path in Path("/proc").glob("[0-9]*")) if pids is None else pids
    return {pid for pid in everyone if folder in command(pid) and "haproxy.cfg" in command(pid)}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "striate keys"),
        (["--host", "192.0.2.1", "--api-keys", "/nowhere/keys"], 2, "/nowhere/keys"),
        (["--runtime", "fast"], 2, "--runtime"),
        (["--tune", "--batch-size", "4"], 2, "--batch-size"),
        (["--config", "serve.yaml"], 2, "--config"),
    ],
)
def test_invalid_options_are_refused_before_the_server_starts(
    bundles: dict[str, str], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert run(["serve", bundles["one"], *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_an_address_where_no_ray_answers_is_reported(bundles: dict[str, str]) -> None:
    # In a process of its own, because this one may be connected to a Ray already.
    command = [STRIATE, "serve", bundles["one"], "--address", "127.0.0.1:1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "cannot connect" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bundle_whose_weights_were_changed_is_refused_by_name(
    bundles: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changed = shutil.copytree(bundles["one"], tmp_path / "changed")
    weights = changed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert run(["serve", str(changed)]) == 1
    assert str(weights) in capsys.readouterr().err


def test_a_model_with_a_users_own_step_is_served_with_its_plugin(photos: list[bytes], tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path)
    with unloaded_afterwards():
        plugins.load([plugin])
        bundle = make_pixel_bundle(tmp_path / "halved", steps="halve(by=2)")
    plain = np.full((3000, 2400, 3), 200, np.uint8)  # prepared by a worker process
    large = codec.encode(plain, codec.Encoding("png"))[0]
    server = start(tmp_path, bundle, "--plugin", plugin, "--port", "0", "--runtime", "eager")
    try:
        classes = json.loads(Path(bundle, "bundle.json").read_text())["classes"]
        url = f"{server.url}/models/halved/predict?top_k={len(classes)}"
        probabilities = dict(ranked(httpx.post(url, content=large, timeout=60).json()["predictions"][0]))
        assert (pixels_of([probabilities[name] for name in classes]) == 100).all()
        assert httpx.post(f"{server.url}/models/halved/predict", content=photos[0], timeout=60).status_code == 200
        shown = httpx.post(f"{server.url}/preview", params={"steps": "halve(by=4)"}, content=photos[0], timeout=60)
        assert (codec.decode(shown.content) == codec.decode(photos[0]) // 4).all()
        assert "halve" in {step["name"] for step in httpx.get(f"{server.url}/steps").json()}
    finally:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0


def test_a_config_file_is_written_and_its_host_needs_keys_too(bundles: dict[str, str], tmp_path: Path) -> None:
    write = ["serve", bundles["one"], "--write-config", str(tmp_path / "serve.yaml"), "--host", "0.0.0.0"]
    assert run(write) == 2
    assert run([*write, "--api-keys", "/etc/striate/keys"]) == 0
    assert "import_path: serve.launch.deploy:model" in (tmp_path / "serve.yaml").read_text()
