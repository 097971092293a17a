"""A Ray of several nodes on this machine, to try things: `striate cluster up`, `status` and `down`.

Each node is a raylet with all that belongs to it, on loopback only. Whatever belongs to the cluster carries the name of
its folder in its environment, so `down` finds exactly these processes and touches no other Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.machine import free_ports
from cluster.session import node_environment
from library.errors import StriateError, UsageError

_MARK = "STRIATE_CLUSTER"
_START_TIMEOUT_S = 90.0
_END_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 0.05
_MAX_NODES = 16
# Shards never pass through it; decoded training pictures do. Memory is taken only as it is used.
_OBJECT_STORE_BYTES = 2**30
_ENVIRONMENT = {
    # A node that is lost is noticed after a second or two; over a network Ray rightly waits half a minute.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # Nobody is served here for whom a node that ends would have to wait.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


@dataclass(frozen=True)
class LocalNode:
    """One node: its number (1 is the head), Ray's id of it, and the process that holds it."""

    number: int
    node_id: str
    pid: int
    cpus: int


@dataclass(frozen=True)
class LocalCluster:
    """What `up` has started.

    Attributes:
        folder: of Ray's files and logs.
        address: for --address and RAY_ADDRESS.
        dashboard: for `striate submit --address`, or None.
        nodes: all that were started.
    """

    folder: str
    address: str
    dashboard: str | None
    nodes: tuple[LocalNode, ...]

    def running(self) -> tuple[LocalNode, ...]:
        """Those nodes that are alive; one ends as soon as any process of it does."""
        alive = set(_marked(self.folder))
        return tuple(node for node in self.nodes if node.pid in alive)


def up(nodes: int, cpus_per_node: int, *, dashboard: bool = False) -> LocalCluster:
    """Start a cluster, and return when every node has joined it.

    Args:
        nodes: how many, the head among them.
        cpus_per_node: logical CPUs of each; it may be more in all than the machine has.
        dashboard: Ray's dashboard too, which `striate submit` needs.

    Raises:
        UsageError: when one is up already.
        StriateError: when a node does not come up; nothing is left running then.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError("a Ray of several nodes on one machine needs Linux; on others, leave --address out")
    if not 1 <= nodes <= _MAX_NODES:
        raise UsageError(f"--nodes {nodes}: from 1 to {_MAX_NODES}")
    if cpus_per_node < 1:
        raise UsageError(f"--cpus-per-node {cpus_per_node}: at least 1")
    _forget_what_is_dead()
    # Short: Ray puts sockets below it, and a socket's path has room for 107 letters. Only its owner can look inside.
    folder = tempfile.mkdtemp(prefix="striate-cluster-", dir="/tmp")
    _claim(folder)
    started: list[LocalNode] = []
    address, web = "", None
    try:
        # One after the other: two that start at once would choose the same names for their sockets.
        for number in range(1, nodes + 1):
            process = _start(folder, number, cpus_per_node, address or None, free_ports(1)[0] if dashboard else None)
            told = _answer(folder, number, process)
            address, web = address or told["gcs"], web or told["dashboard"]
            started.append(LocalNode(number, told["node_id"], process.pid, cpus_per_node))
        made = LocalCluster(folder, address, f"http://{web}" if dashboard and web else None, tuple(started))
        _write_state(dataclasses.asdict(made))
    except BaseException:
        _end(folder)
        _state_file().unlink(missing_ok=True)
        raise
    return made


def find() -> LocalCluster | None:
    """The cluster that `up` has started on this machine for this user, or None."""
    state = _read_state()
    if state is None or "nodes" not in state:
        return None
    nodes = tuple(LocalNode(**node) for node in state["nodes"])
    return LocalCluster(state["folder"], state["address"], state["dashboard"], nodes)


def down() -> int:
    """End the cluster, whatever of it still runs, and remove its files.

    Returns:
        How many processes were ended.

    Raises:
        UsageError: when there is none.
    """
    state = _read_state()
    if state is None:
        raise UsageError("no cluster of `striate cluster up` is here; there is nothing to end")
    ended = _end(state["folder"])
    _state_file().unlink(missing_ok=True)
    return ended


def processes(folder: str, number: int | None = None) -> list[int]:
    """All processes of a cluster, or of one of its nodes, by their ids."""
    return _marked(folder, number)


def _start(
    folder: str, number: int, cpus: int, address: str | None, dashboard_port: int | None
) -> subprocess.Popen[bytes]:
    told = {
        "folder": folder,
        "number": number,
        "cpus": cpus,
        "object_store_bytes": _OBJECT_STORE_BYTES,
        "gcs": address,
        "dashboard_port": dashboard_port,
    }
    environment = {**_ENVIRONMENT, **node_environment(), _MARK: f"{folder}#{number}"}
    environment.pop("RAY_ADDRESS", None)
    # A submitted job finds `striate` also where this environment is not activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    with open(_log(folder, number), "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.local_node", json.dumps(told)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it
        )


def _answer(folder: str, number: int, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a node says once it is up."""
    file = Path(folder) / f"node-{number}.json"
    if not _wait(lambda: file.exists() or process.poll() is not None, _START_TIMEOUT_S) or not file.exists():
        lines = _log(folder, number).read_text("utf-8", "replace").strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        state = f"is not up after {_START_TIMEOUT_S:.0f} s" if process.poll() is None else "ended while it started"
        raise StriateError(f"node {number} {state}: {last}")
    return json.loads(file.read_bytes())


def _log(folder: str, number: int) -> Path:
    return Path(folder) / f"node-{number}.log"


def _end(folder: str) -> int:
    """End all processes of a cluster, in good order if they let us; then remove its folder."""
    found = _marked(folder)
    for how in (signal.SIGTERM, signal.SIGKILL):
        for pid in _marked(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        if _wait(lambda: not _marked(folder), _END_TIMEOUT_S):
            break
    else:
        raise StriateError(f"some processes of {folder} do not end: {_marked(folder)}")
    shutil.rmtree(folder, ignore_errors=True)
    return len(found)


def _marked(folder: str, number: int | None = None) -> list[int]:
    """Processes that carry the mark; and those beside them in a session, whose environment a new title has overwritten
    (workers show what they do in the list of processes)."""
    mark = f"{_MARK}={folder}#".encode() + (b"" if number is None else f"{number}\0".encode())
    sessions: dict[int, int] = {}
    marked: set[int] = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            if entry.stat().st_uid != os.getuid() or _is_zombie(entry):
                continue
            sessions[pid] = os.getsid(pid)
            if b"\0" + mark in b"\0" + (entry / "environ").read_bytes():
                marked.add(pid)
    mine = {sessions[pid] for pid in marked}
    return sorted(pid for pid, session in sessions.items() if pid in marked or session in mine)


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"


def _wait(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_EVERY_S)  # of files and of other sessions' processes, which tell nobody
    return True


def _state_file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "striate" / "cluster.json"


def _read_state() -> dict[str, Any] | None:
    try:
        return json.loads(_state_file().read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StriateError(f"{_state_file()} is damaged; remove it, and look for processes by hand: {error}") from error


def _claim(folder: str) -> None:
    """Say that a cluster is being started here; of two that say so at once, one is refused."""
    file = _state_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(file, "x", encoding="utf-8") as state:
            json.dump({"folder": folder, "by": os.getpid()}, state)
    except FileExistsError:
        os.rmdir(folder)
        raise UsageError("a cluster is being started here by another `striate cluster up`") from None


def _write_state(state: dict[str, Any]) -> None:
    part = _state_file().with_suffix(".part")
    part.write_text(json.dumps(state), encoding="utf-8")
    os.replace(part, _state_file())


def _forget_what_is_dead() -> None:
    state = _read_state()
    if state is None:
        return
    if _marked(state["folder"]) or Path(f"/proc/{state.get('by', 0)}").exists():
        where = f" at {state['address']}" if "address" in state else ""
        raise UsageError(f"a cluster runs here already{where}; `striate cluster status` shows it, `down` ends it")
    _end(state["folder"])
    _state_file().unlink(missing_ok=True)
