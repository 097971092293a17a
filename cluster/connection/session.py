"""Connecting to Ray: the only place that calls `ray.init`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

from cluster import ray_internals
from cluster.connection.addresses import asks_for_token, check_answers, is_of_this_machine, is_only_here, is_same
from cluster.connection.head_watch import watched
from cluster.connection.token import find_token, make_token
from cluster.console import say
from cluster.machine import memory_bytes, shm_bytes
from library.errors import StriateError, UsageError

#: Set before Ray is imported, unless the user has set them.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers that use no GPU keep seeing the GPUs' variables unchanged; without this Ray warns about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's C++ core writes notes on its own affairs to our stderr; they stay in its log files.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray Train takes up one report of the workers each time it looks; an epoch may take less than its two seconds. But
    # each look takes some milliseconds from the workers.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # Workers share CPUs: a thread of torch that waits for another by spinning keeps it from running.
    "OMP_WAIT_POLICY": "PASSIVE",
}

#: Named for where it is the default: this machine's address is then 127.0.0.1 for Ray, whose own ports (objects,
#: workers, agents) are open to nobody else.
_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# Of a Ray that we start ourselves.
_LOCAL_ENVIRONMENT = {
    _LOOPBACK[0]: _LOOPBACK[1],
    # Nobody reads them here.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # An actor that asks whether the cloud is about to take a node away.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

# Files of Ray's core whose lines are its own affairs: its log's level, and each try to reach a head.
_NOTES_FROM = (b"logging.cc", b"gcs_client.cc")
_NO_TOKEN = b"AuthToken"

# Of memory, as Ray's own default, and of /dev/shm, beyond which Ray takes files. Shards never pass through it; decoded
# training pictures do. Memory is taken only as it is used.
_STORE_OF_MEMORY, _STORE_OF_SHM, _SMALLEST_STORE = 0.3, 0.9, 100 * 2**20


#: How a process of our own ends when its cluster is lost; see `own_process`.
_end_process: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Session:
    """A connection to Ray.

    Attributes:
        address: of the cluster, or None for a Ray started on this machine for this process.
        cpus: logical CPUs of all nodes that are there.
        nodes: how many there are of these.
        gpus: logical GPUs of all of them.
        node_cpus: logical CPUs of each that has some.
    """

    address: str | None
    cpus: int
    nodes: int
    gpus: int = 0
    node_cpus: tuple[float, ...] = ()

    def __str__(self) -> str:
        """`Ray at head:6379: 3 nodes, 24 CPUs, 2 GPUs`."""
        there = f"{_counted(self.nodes, 'node')}, {self.cpus} CPUs, {self.gpus} GPUs"
        return f"Ray at {self.address or 'this machine'}: {there}"

    @property
    def may_grow(self) -> bool:
        """Whether nodes may come: Ray does not say whether a cluster has an autoscaler, or what it may start."""
        return self.address is not None

    def workers(self, wanted: str) -> int:
        """Turn `--workers` into a number: `auto` is one a CPU that is there.

        Raises:
            UsageError: when it is not a number, or more than the CPUs of this machine.
        """
        if wanted == "auto":
            return max(1, self.cpus)
        if not wanted.isdigit() or int(wanted) < 1:
            raise UsageError(f"--workers '{wanted}': write a number from 1, or auto")
        if int(wanted) > self.cpus and not self.may_grow:
            raise UsageError(
                f"--workers {wanted}: Ray has {self.cpus} CPUs on this machine; ask for at most as many, or use a "
                "cluster (--address)"
            )
        return int(wanted)


@contextmanager
def connect(
    address: str | None = None, *, num_cpus: int | None = None, environment: Mapping[str, str] | None = None
) -> Generator[Session]:
    """Connect to `address`, else RAY_ADDRESS, else start Ray on this machine until the block ends.

    Where this process is connected already, that connection is used and left open.

    Args:
        address: of a cluster; `local` starts one even where RAY_ADDRESS is set.
        num_cpus: logical CPUs of a Ray that is started here; as many as there are by default.
        environment: of a Ray that is started here; what the user has set yields to it.

    Raises:
        UsageError: when this process is connected to another cluster than the one that is named.
        StriateError: when nothing answers at the address.
    """
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            _check_same(address)
            yield _session(address)
            return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = named_cluster(address)
    if address is not None and address != "auto":
        host, port = check_answers(address)
        if find_token(None) is not None and asks_for_token(host, port):
            # Ray itself sends a token only to a cluster of this machine that it has found by itself.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        if is_only_here(host, port):
            # As of a Ray that this function has started in another process. Ray would look for it at this machine's
            # address in the network.
            os.environ.setdefault(*_LOOPBACK)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        for name, value in _local_environment().items():
            os.environ.setdefault(name, value)
        make_token()
        os.environ.update(environment or {})
        options |= {
            "num_cpus": num_cpus or os.cpu_count(),
            "include_dashboard": False,
            "object_store_memory": object_store_bytes(memory_bytes(), shm_bytes()),
        }
    # Ray reads most of its environment when it is imported.
    import ray

    ray_internals.check("core")
    notes: list[bytes] = []
    # Ray prints what it says of lost nodes and the like, in the midst of a command's JSON document.
    with nullcontext() if _end_process is None else redirect_stdout(sys.stderr):
        try:
            with _without_ray_notes(notes), ray_internals.sigterm_handler_kept():
                ray.init(address=address or "local", **options)
        except Exception as error:  # Ray raises a bare one where the machine is too busy to start it
            raise StriateError(_refused(address, error, notes)) from error
        try:
            with _watched(address):
                session = _session(address)
                if address is not None:
                    say(f"connected to {session}", file=sys.stderr, flush=True)
                yield session
        finally:
            with undisturbed():
                ray.shutdown()


def own_process(fail: Callable[[str], int]) -> None:
    """Say that this process is a command of ours, and not a program that uses striate as a library.

    Only then a connection may end the process, when the head of its cluster is lost, and sends to stderr whatever
    others print to `sys.stdout` while it is open.

    Args:
        fail: reports a message, and returns the exit code of the process.
    """
    global _end_process
    out = sys.stdout

    def end(message: str) -> None:
        with redirect_stdout(out):
            code = fail(message)
        out.flush()
        sys.stderr.flush()
        os._exit(code)

    _end_process = end


def _check_same(address: str | None) -> None:
    """Refuse another cluster than the connected one; of one that ray:// names nothing can be told."""
    import ray

    if address is None or address == "auto" or address.startswith("ray://"):
        return
    connected = ray.get_runtime_context().gcs_address
    if not (is_of_this_machine(connected) if address == "local" else is_same(address, connected)):
        raise UsageError(f"--address {address}: this process is connected to Ray at {connected} already")


def _refused(address: str | None, error: Exception, notes: Sequence[bytes]) -> str:
    if address is None:
        return f"cannot start Ray on this machine: {error}"
    if any(_NO_TOKEN in note for note in notes):
        return (
            f"Ray at {address} asks for a token, and was given none or another cluster's: set RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
    told = "".join(f"; Ray's core: {note.decode(errors='replace').strip()}" for note in notes[-1:])
    return f"cannot connect to Ray at {address}: {error}{told}; see --address and RAY_ADDRESS"


def _watched(address: str | None) -> AbstractContextManager[None]:
    """Of a Ray that is started here, and through ray://, Ray itself tells at once what is lost."""
    import ray

    if address is None or address.startswith("ray://"):
        return nullcontext()
    return watched(ray.get_runtime_context().gcs_address, _end_process)


def object_store_bytes(memory: int, shm: int | None) -> int:
    """Of a Ray on a machine with so much memory and /dev/shm (None: it has none), in bytes."""
    most = min(_STORE_OF_MEMORY * memory, memory if shm is None else _STORE_OF_SHM * shm)
    return max(int(most), _SMALLEST_STORE)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def node_environment() -> dict[str, str]:
    """Of a node's process that is started on this machine: as of a Ray that `connect` starts here."""
    return {**_ENVIRONMENT, **_local_environment(), **os.environ}


def _local_environment() -> dict[str, str]:
    """Ray encodes the path of its temporary folder as ASCII: a TMPDIR with other letters is not for it."""
    fits = os.environ.get("TMPDIR", "").isascii()
    return _LOCAL_ENVIRONMENT if fits else _LOCAL_ENVIRONMENT | {"RAY_TMPDIR": "/tmp"}


def named_cluster(address: str | None) -> str | None:
    """The cluster that `connect` would connect to; None where it would start a Ray here."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def _session(address: str | None) -> Session:
    from cluster.resources import nodes

    present = nodes()
    cpus = tuple(float(node["CPU"]) for node in present if node.get("CPU"))
    return Session(address, int(sum(cpus)), len(present), int(sum(node.get("GPU", 0) for node in present)), cpus)


@contextmanager
def undisturbed() -> Generator[None]:
    """Go on at one more Ctrl-C or SIGTERM, as of somebody who is impatient, and end the process at the next."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def count(number: int, _frame: object) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)

    before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's own


@contextmanager
def _without_ray_notes(notes: list[bytes]) -> Generator[None]:
    """Hold back in `notes` what Ray's core writes to stderr about its own affairs; everything else is passed on."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if any(source in line for source in _NOTES_FROM):
                    notes.append(line)
                else:
                    os.write(2, line)
