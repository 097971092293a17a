"""Parts of the GPU benchmark that answer: batch prediction of a dataset, and a server under load.

Each runs in a process of its own and prints its figures as JSON. benchmarks/README.md defines them.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.common.process_tree import server
from benchmarks.gpu.settings import Folder, Settings, parse_part, run_striate, striate_command
from benchmarks.serve.http_load import Bodies, client_loop
from cluster.machine import free_ports
from library.dataset.manifest import load_manifest

_BODIES = 200
_CLIENTS = 4
_START_S = 120.0
_NAME = "model"


def main() -> None:
    """Prints the figures of one part, as JSON."""
    name, settings, folder = parse_part(__doc__, tuple(_PARTS))
    print(json.dumps(_PARTS[name](settings, folder)))


def _predict(settings: Settings, folder: Folder) -> dict[str, Any]:
    """Measures the whole command `striate predict`, and what its workers spent their time on."""
    out = str(folder.path / "predicted")
    gpu = "--gpu" if settings.on_gpu else "--no-gpu"
    _, whole_s = run_striate("predict", str(folder.bundle), str(folder.dataset), out, gpu)
    manifest = load_manifest(out)
    return {
        "pictures": manifest.rows,
        "whole_s": whole_s,
        "pictures_per_s": round(manifest.rows / whole_s, 1),
        "stage_s": manifest.run["seconds"],
    }


def _serve(settings: Settings, folder: Folder) -> dict[str, Any]:
    """Measures `striate serve` with the runtime eager under closed loops of several numbers of connections."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/models/{_NAME}/predict"
    options = ["--port", str(port), "--runtime", "eager", *(["--gpu"] if settings.on_gpu else [])]
    command = striate_command("serve", f"{_NAME}={folder.bundle}", *options)
    bodies = Bodies(folder.photos, min(_BODIES, settings.photos))
    probe = urllib.request.Request(url, bodies.read()[0], {"Content-Type": "image/jpeg"}, method="POST")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    with server(command, environment, probe, _START_S) as started:

        def load(connections: int, seconds: float) -> dict[str, Any]:
            return client_loop(url, bodies, connections, seconds, _CLIENTS)

        load(max(settings.connections), settings.seconds / 2)  # warm-up: batches of all sizes
        rates = {str(connections): load(connections, settings.seconds) for connections in settings.connections}
        memory_mb = started.memory_mb()
    return {
        "start_s": started.seconds,
        "connections": rates,
        "client": f"asyncio, up to {_CLIENTS} processes on the same CPUs",
        "memory_mb": memory_mb,
    }


_PARTS: Mapping[str, Callable[[Settings, Folder], dict[str, Any]]] = {"serve": _serve, "predict": _predict}

if __name__ == "__main__":
    sys.exit(main())
