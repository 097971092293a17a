"""The contestants of serve_throughput.py: the commands that start the servers, and the limit, which serves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request

from benchmarks import REPOSITORY
from benchmarks.common.measuring import NotRunError
from benchmarks.common.process_tree import Started, server
from benchmarks.serve.http_load import Bodies
from benchmarks.serve.served_models import Served
from library.errors import StriateError

_PROGRAMS = "benchmarks.serve.programs"
#: Largest batch of LitServe and BentoML.
_BATCH = 32
#: Batch sizes that the limit tries.
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_BOUNDARY = "striate-bench-mark"


@dataclass(frozen=True)
class Server:
    """One way to serve a model.

    Attributes:
        name: for `--only`.
        what: its description in the result.
        kind: striate, fastapi, litserve or bentoml.
        code: how a peer computes: `bundle` or `plain`, see programs/classifier.py.
        form: name of the multipart field for the picture; None sends it as the body.
        replicas: starts striate with one replica per core instead of one replica with all cores.
        variables: additional environment variables.
    """

    name: str
    what: str
    kind: str
    code: str = "bundle"
    form: str | None = None
    replicas: bool = False
    variables: tuple[tuple[str, str], ...] = ()

    @contextmanager
    def started(
        self, served: Served, port: int, cores: int, peers_python: Path | None
    ) -> Generator[tuple[Started, str]]:
        """Runs the server during the block; yields it and the URL that pictures are posted to.

        Args:
            served: the model and the request bodies.
            port: port to listen on.
            cores: number of workers of a peer, and of replicas where `replicas` is set.
            peers_python: an interpreter with LitServe and BentoML; None without one.

        Raises:
            NotRunError: a peer is not installed, or the server does not start.
        """
        if self.kind in ("litserve", "bentoml") and peers_python is None:
            raise NotRunError(
                f"{self.kind} is not installed: `make bench` installs the peers in out/peers; or name an interpreter "
                "with --peers-python"
            )
        path = f"/models/{served.name}/predict" if self.kind == "striate" else "/predict"
        url = f"http://127.0.0.1:{port}{path}"
        environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
        environment |= {
            "PYTHONPATH": str(REPOSITORY),
            "BENCH_BUNDLE": str(served.bundle),
            "BENCH_CODE": self.code,
            "BENCH_WORKERS": str(cores),
            "BENCH_THREADS": "1",
            "BENCH_BATCH": str(_BATCH),
            "BENTOML_DO_NOT_TRACK": "True",
            **dict(self.variables),
        }
        with server(
            self._command(served, port, cores, peers_python), environment, _probe(url, served.bodies, self.form)
        ) as running:
            yield running, url

    def _command(self, served: Served, port: int, cores: int, peers_python: Path | None) -> list[str]:
        python = Path(sys.executable)
        match self.kind:
            case "striate":
                options = ["--port", str(port), *(["--replicas", str(cores)] if self.replicas else [])]
                return [str(python.with_name("striate")), "serve", f"{served.name}={served.bundle}", *options]
            case "fastapi":
                app = f"{_PROGRAMS}.fastapi_server:app"
                options = ["--port", str(port), "--workers", str(cores), "--log-level", "warning", "--no-access-log"]
                return [str(python), "-m", "uvicorn", app, *options]
            case "litserve":
                return [str(peers_python), "-m", f"{_PROGRAMS}.litserve_server", str(port), str(cores)]
            case "bentoml":
                bento = Path(str(peers_python)).with_name("bentoml")
                service = f"{_PROGRAMS}.bentoml_service:Classifier"
                return [str(bento), "serve", service, "--host", "127.0.0.1", "--port", str(port), "--quiet"]
            case _:
                raise StriateError(f"unknown kind of server: {self.kind}")


SERVERS = (
    Server("striate", "striate serve", "striate"),
    Server("striate_replicas", "striate serve, one replica per core", "striate", replicas=True),
    Server("fastapi", "FastAPI by hand, Striate's decoding and model", "fastapi"),
    Server("litserve", "LitServe, Striate's decoding and model", "litserve", form="request"),
    Server("bentoml", "BentoML, Striate's model", "bentoml", form="images"),
    Server(
        "striate_python_proxy",
        "striate serve, Serve's Python proxy",
        "striate",
        variables=(("RAY_SERVE_ENABLE_HA_PROXY", "0"),),
    ),
    Server("fastapi_plain", "FastAPI by hand, Pillow, torchvision", "fastapi", code="plain"),
    Server("litserve_plain", "LitServe, Pillow, torchvision", "litserve", code="plain", form="request"),
    Server("bentoml_plain", "BentoML, Pillow, torchvision", "bentoml", code="plain", form="images"),
)


def _probe(url: str, bodies: Bodies, form: str | None) -> Request:
    """Returns a request with a real picture: a server is ready when it has classified one."""
    data, headers = bodies.read()[0], {"Content-Type": "image/jpeg"}
    if form is not None:
        disposition = f'Content-Disposition: form-data; name="{form}"; filename="a.jpg"'
        head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n"
        data = head.encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    return Request(url, data, headers, method="POST")


def versions(peers_python: Path | None) -> dict[str, str]:
    """Returns the installed versions of the peers; empty without an interpreter."""
    program = "import importlib.metadata as m; print(m.version('litserve'), m.version('bentoml'), m.version('fastapi'))"
    if peers_python is None:
        return {}
    done = subprocess.run([peers_python, "-c", program], capture_output=True, text=True)
    return dict(zip(("litserve", "bentoml", "fastapi"), done.stdout.split(), strict=False))


# -- the limit --------------------------------------------------------------------------------------------------------


def limit(served: Served, runtime: str, cores: int, seconds: float) -> dict[str, Any]:
    """Measures the bundle in a loop with decoding, for every batch size, in one process and in one per core.

    Args:
        served: the model and the pictures.
        runtime: name of the runtime, as for `striate serve --runtime`.
        cores: number of cores.
        seconds: duration for each setting.

    Returns:
        `processes`, `batch_size` and `requests_per_s` of the fastest setting, `runtime`, and `tried` with all settings.
    """
    tried: list[dict[str, Any]] = []
    runtimes: list[dict[str, Any]] = []
    for processes in sorted({1, cores}):
        with ExitStack() as stack:
            loops = [stack.enter_context(_loop(served, runtime, max(1, cores // processes))) for _ in range(processes)]
            runtimes = [json.loads(_line(loop))["ready"] for loop in loops]
            for size in _SIZES:
                rate = _rate(loops, size, seconds)
                tried.append({"processes": processes, "batch_size": size, "requests_per_s": round(rate, 2)})
    best = max(tried, key=lambda figures: figures["requests_per_s"])
    return {**best, "runtime": runtimes[0], "tried": tried}


@contextmanager
def _loop(served: Served, runtime: str, threads: int) -> Generator[subprocess.Popen[str]]:
    arguments = [str(served.bundle), str(served.bodies.folder), runtime, str(threads)]
    command = [sys.executable, "-m", f"{_PROGRAMS}.bare_model", *arguments]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loop:
        try:
            yield loop
        finally:
            loop.kill()


def _rate(loops: Sequence[subprocess.Popen[str]], size: int, seconds: float) -> float:
    """Returns the pictures per second of all loops together."""
    for loop in loops:
        assert loop.stdin
        loop.stdin.write(json.dumps({"batch": size, "seconds": seconds}) + "\n")
        loop.stdin.flush()
    reports = [json.loads(_line(loop)) for loop in loops]
    return sum(figures["pictures"] / figures["seconds"] for figures in reports)


def _line(loop: subprocess.Popen[str]) -> str:
    assert loop.stdout
    line = loop.stdout.readline()
    if not line:
        raise StriateError("the program bare_model ended before it had printed its result")
    return line
