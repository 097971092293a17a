"""A Ray of several nodes on this machine, to try things: `striate cluster up`, `status` and `down`.

One process, the keeper, holds all nodes (`ray.cluster_utils`), on loopback only; they end with it. As long as it lives
it holds a lock, so whether a cluster is up never depends on a process id that something else may have by now.
`ray start` would put the nodes on this machine's address in the network, where others reach their ports.
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
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cluster.machine import free_ports
from cluster.ray_token import make_token
from cluster.session import node_environment
from library.errors import StriateError, UsageError

_START_TIMEOUT_S = 60.0  # for each node
_END_TIMEOUT_S = 15.0
_LOOK_EVERY_S, _KEEPER_LOOKS_EVERY_S = 0.05, 0.5
_MAX_NODES = 16
# Shards never pass through it; decoded training pictures do. Memory is taken only as it is used.
_OBJECT_STORE_BYTES = 2**30
# A node that is lost is noticed after a second or two; over a network Ray rightly waits half a minute.
_ENVIRONMENT = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class LocalNode:
    """One node: its number (1 is the head), Ray's id, its raylet's process (the head's: its GCS), whether it runs."""

    number: int
    node_id: str
    pid: int
    cpus: int
    running: bool = True


@dataclass(frozen=True)
class LocalCluster:
    """What `up` has started.

    Attributes:
        folder: of Ray's files and logs.
        address: for --address and RAY_ADDRESS.
        dashboard: for `striate submit --address`, or None.
        keeper: process that holds all nodes.
        nodes: all that were started. A node ends as soon as any process of it does.
    """

    folder: str
    address: str
    dashboard: str | None
    keeper: int
    nodes: tuple[LocalNode, ...]


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
    _state_file().parent.mkdir(parents=True, exist_ok=True)
    with open(_state_file().with_suffix(".lock"), "w", encoding="utf-8") as lock:
        stale = _read_state()
        if not _take(lock):
            where = f"runs here already at {stale.address}" if stale else "is being started here"
            raise UsageError(f"a cluster {where}; `striate cluster status` shows it, `down` ends it")
        _remove(stale.folder if stale else None)
        # Short: Ray puts sockets below it, and a socket's path has room for 107 letters.
        folder = tempfile.mkdtemp(prefix="striate-cluster-", dir="/tmp")
        keeper = _start_keeper(lock, folder, nodes, cpus_per_node, dashboard)
    try:
        _wait(lambda: _read_state() or keeper.poll() is not None, nodes * _START_TIMEOUT_S)
        cluster = _read_state()
        if cluster is None:
            lines = Path(folder, "keeper.log").read_text("utf-8", "replace").strip().splitlines()
            raise StriateError(f"the cluster is not up: {lines[-1] if lines else 'its process said nothing'}")
    except BaseException:
        _end(keeper.pid)
        _remove(folder)
        raise
    return cluster


def find() -> LocalCluster | None:
    """The cluster that `up` has started on this machine for this user, or None."""
    cluster = _read_state()
    if cluster is None or _is_kept():
        return cluster
    return dataclasses.replace(cluster, nodes=tuple(dataclasses.replace(node, running=False) for node in cluster.nodes))


def down() -> int:
    """End the cluster, whatever of it still runs, and remove its files.

    Returns:
        How many nodes were ended.

    Raises:
        UsageError: when there is none.
    """
    cluster = find()
    if cluster is None:
        raise UsageError("no cluster of `striate cluster up` is here; there is nothing to end")
    if _is_kept():
        _end(cluster.keeper)
    _remove(cluster.folder)
    return sum(node.running for node in cluster.nodes)


def _start_keeper(
    lock: IO[str], folder: str, nodes: int, cpus_per_node: int, dashboard: bool
) -> subprocess.Popen[bytes]:
    environment = {**_ENVIRONMENT, **node_environment(), "RAY_TMPDIR": folder}
    environment.pop("RAY_ADDRESS", None)
    # A submitted job finds `striate` also where this environment is not activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    with open(Path(folder, "keeper.log"), "wb") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "cluster.local_cluster"),
                *(folder, str(nodes), str(cpus_per_node), str(free_ports(1)[0] if dashboard else 0)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
            pass_fds=(lock.fileno(),),  # the lock is held until it ends
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it
        )


def _keep(folder: str, count: int, cpus: int, dashboard_port: int) -> None:
    """Start the nodes, write down where they are, and hold them until SIGTERM or until none of them is left."""
    # As `ray.init` does for a Ray that it starts: a token unless the user has said otherwise.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    make_token()
    from ray.cluster_utils import Cluster

    cluster, held = Cluster(), dict[int, Any]()
    for number in range(1, count + 1):
        node: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES}
        node["dashboard_agent_listen_port"] = 0  # the default port is for one node a machine
        if number == 1:
            node |= {"include_dashboard": dashboard_port > 0, "dashboard_port": dashboard_port or None}
        else:
            # The head's is below RAY_TMPDIR, where a submitted job looks up which Ray is its own. Nodes that unpacked
            # what a job sends into one folder would pull it away from each other.
            node["temp_dir"] = f"{folder}/{number}"
        held[number] = cluster.add_node(**node)
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    nodes = tuple(LocalNode(number, node.node_id, _pid(node), cpus) for number, node in held.items())
    dashboard = f"http://{held[1].webui_url}" if dashboard_port else None
    state = LocalCluster(folder, held[1].gcs_address, dashboard, os.getpid(), nodes)
    _write_state(state)
    while held and not over.wait(_KEEPER_LOOKS_EVERY_S):  # Ray has no call that waits for it
        for number in [number for number, node in held.items() if not node.remaining_processes_alive()]:
            cluster.remove_node(held.pop(number), allow_graceful=False)
            running = tuple(dataclasses.replace(node, running=node.number in held) for node in state.nodes)
            state = dataclasses.replace(state, nodes=running)
            _write_state(state)
    cluster.shutdown()


def _pid(node: Any) -> int:
    processes: dict[str, Any] = dict(node.live_processes())
    return processes.get("gcs_server", processes["raylet"]).pid


def _end(keeper: int) -> None:
    """End the keeper, and with it its nodes: in good order if it lets us."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, how)
        if _wait(lambda: not _is_kept(), _END_TIMEOUT_S):
            return
    raise StriateError(f"process {keeper}, which holds the cluster, does not end")


def _wait(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_EVERY_S)  # of files and locks of another process
    return True


def _take(lock: IO[str]) -> bool:
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_kept() -> bool:
    """Whether a keeper lives."""
    with open(_state_file().with_suffix(".lock"), "a", encoding="utf-8") as lock:
        return not _take(lock)


def _state_file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "striate" / "cluster.json"


def _read_state() -> LocalCluster | None:
    try:
        state: dict[str, Any] = json.loads(_state_file().read_bytes())
    except FileNotFoundError:
        return None
    nodes = tuple(LocalNode(**node) for node in state.pop("nodes"))
    return LocalCluster(**state, nodes=nodes)


def _write_state(cluster: LocalCluster) -> None:
    part = _state_file().with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(cluster)), encoding="utf-8")
    os.replace(part, _state_file())


def _remove(folder: str | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    _state_file().unlink(missing_ok=True)


if __name__ == "__main__":
    _keep(sys.argv[1], *map(int, sys.argv[2:]))
