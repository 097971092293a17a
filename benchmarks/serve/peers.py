"""The contestants of serve_throughput.py: how each is started, and the limit, which serves nothing."""

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
#: Largest batch of LitServe and BentoML; the limit tries several.
_BATCH = 32
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_MARK = "striate-bench-mark"


@dataclass(frozen=True)
class Server:
    """One way to serve a model.

    Attributes:
        name: for `--only`.
        what: said in the table and in the result.
        kind: striate, fastapi, litserve or bentoml.
        code: what computes in a peer: `bundle` or `plain`, see programs/classifier.py.
        form: name of the multipart field it takes a picture in; None: the body.
        replicas: striate with a replica a core instead of one with all cores.
        variables: of its environment.
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
        """The server while it runs, and where pictures are posted.

        Raises:
            NotRunError: a peer that is not here, or whatever does not start.
        """
        if self.kind in ("litserve", "bentoml") and peers_python is None:
            raise NotRunError(
                f"no {self.kind} here; `make bench` gives the peers an environment of their own in out/peers, "
                "or name one with --peers-python"
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
        ) as it:
            yield it, url

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
                raise StriateError(f"no such kind of server: {self.kind}")


SERVERS = (
    Server("striate", "striate serve", "striate"),
    Server("striate_replicas", "striate serve, a replica a core", "striate", replicas=True),
    Server("fastapi", "FastAPI by hand, our decoding and model", "fastapi"),
    Server("litserve", "LitServe, our decoding and model", "litserve", form="request"),
    Server("bentoml", "BentoML, our model", "bentoml", form="images"),
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
    """A real picture: a server is up when it has classified one."""
    data, headers = bodies.read()[0], {"Content-Type": "image/jpeg"}
    if form is not None:
        disposition = f'Content-Disposition: form-data; name="{form}"; filename="a.jpg"'
        head = f"--{_MARK}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n"
        data = head.encode() + data + f"\r\n--{_MARK}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={_MARK}"}
    return Request(url, data, headers, method="POST")


def versions(peers_python: Path | None) -> dict[str, str]:
    """Of the peers, as installed."""
    program = "import importlib.metadata as m; print(m.version('litserve'), m.version('bentoml'), m.version('fastapi'))"
    if peers_python is None:
        return {}
    done = subprocess.run([peers_python, "-c", program], capture_output=True, text=True)
    return dict(zip(("litserve", "bentoml", "fastapi"), done.stdout.split(), strict=False))


# -- the limit --------------------------------------------------------------------------------------------------------


def limit(served: Served, runtime: str, cores: int, seconds: float) -> dict[str, Any]:
    """The bundle in a loop with decoding, at its best: every batch size, in one process and in one a core.

    Returns:
        `requests_per_s` of the best, which that is, and every one that was tried.
    """
    tried: list[dict[str, Any]] = []
    ready: list[dict[str, Any]] = []
    for processes in sorted({1, cores}):
        with ExitStack() as stack:
            loops = [stack.enter_context(_loop(served, runtime, max(1, cores // processes))) for _ in range(processes)]
            ready = [json.loads(_line(loop))["ready"] for loop in loops]
            for size in _SIZES:
                rate = _asked(loops, size, seconds)
                tried.append({"processes": processes, "batch_size": size, "requests_per_s": round(rate, 2)})
    best = max(tried, key=lambda figures: figures["requests_per_s"])
    return {**best, "runtime": ready[0], "tried": tried}


@contextmanager
def _loop(served: Served, runtime: str, threads: int) -> Generator[subprocess.Popen[str]]:
    arguments = [str(served.bundle), str(served.bodies.folder), runtime, str(threads)]
    command = [sys.executable, "-m", f"{_PROGRAMS}.bare_model", *arguments]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loop:
        try:
            yield loop
        finally:
            loop.kill()


def _asked(loops: Sequence[subprocess.Popen[str]], size: int, seconds: float) -> float:
    """Pictures per second of all loops together."""
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
        raise StriateError("a loop of the bare model ended")
    return line
