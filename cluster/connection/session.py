"""Connecting to Ray: the only place that calls `ray.init`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

from cluster import ray_internals
from cluster.connection.head_watch import watched
from cluster.connection.ray_address import asks_for_token, check_answers, is_of_this_machine, is_only_here, is_same
from cluster.connection.token import find_token, make_token
from cluster.console import say
from cluster.logging_setup import ray_notes_held_back
from cluster.machine import object_store_bytes
from library.errors import StriateError, UsageError

#: Set before Ray is imported, unless the user has set them.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers that use no GPU keep seeing the GPUs' variables unchanged; without this Ray warns about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's C++ core writes notes about itself to our stderr; they stay in its log files.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray Train handles one report of each worker per poll, every two seconds; an epoch may be shorter. But each poll
    # costs the workers some milliseconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # Workers share CPUs: a thread of torch that spins while it waits for another keeps that one from running.
    "OMP_WAIT_POLICY": "PASSIVE",
}

#: With this variable Ray uses 127.0.0.1 as this machine's address, so its own ports (objects, workers, agents) are
#: closed to other machines. Ray names it after the systems where that is the default.
_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# Variables of a Ray that we start ourselves.
_LOCAL_ENVIRONMENT = {
    _LOOPBACK[0]: _LOOPBACK[1],
    # Ray gives its head and its node 30 s each to start, which a busy machine exceeds.
    "RAY_gcs_server_port_wait_time_s": "90",
    "RAY_raylet_start_wait_time_s": "90",
    # A local Ray has no Prometheus that reads them.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # The watcher is an actor that asks whether the cloud is about to take a node away.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

_NO_TOKEN = b"AuthToken"

# How often a Ray on this machine is started before a command gives up: on a busy machine its processes may miss
# deadlines that Ray sets them.
_STARTS = 3

#: Ends a `striate` command when its cluster is lost; see `own_process`.
_end_process: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Session:
    """A connection to Ray.

    Attributes:
        address: address of the cluster; None for a Ray that was started on this machine for this process.
        cpus: logical CPUs of all nodes that are up.
        nodes: number of nodes that are up.
        gpus: logical GPUs of all nodes.
        node_cpus: logical CPUs of each node that has any.
    """

    address: str | None
    cpus: int
    nodes: int
    gpus: int = 0
    node_cpus: tuple[float, ...] = ()

    def __str__(self) -> str:
        """`Ray at head:6379: 3 nodes, 24 CPUs, 2 GPUs`."""
        resources = f"{_counted(self.nodes, 'node')}, {self.cpus} CPUs, {self.gpus} GPUs"
        return f"Ray at {self.address or 'this machine'}: {resources}"

    @property
    def may_grow(self) -> bool:
        """Whether nodes may be added. Ray does not say whether a cluster has an autoscaler, so any cluster may grow."""
        return self.address is not None

    def workers(self, option: str) -> int:
        """Returns the number of workers for `--workers`: `auto` is one per CPU of the nodes that are up.

        Raises:
            UsageError: when it is not a number, or more than the CPUs of this machine.
        """
        if option == "auto":
            return max(1, self.cpus)
        if not option.isdigit() or int(option) < 1:
            raise UsageError(f"--workers '{option}': write a number from 1, or auto")
        if int(option) > self.cpus and not self.may_grow:
            raise UsageError(
                f"--workers {option}: Ray has {self.cpus} CPUs on this machine; use at most that many, or a cluster "
                "(--address)"
            )
        return int(option)


@contextmanager
def connect(
    address: str | None = None, *, num_cpus: int | None = None, environment: Mapping[str, str] | None = None
) -> Generator[Session]:
    """Connects to `address` or RAY_ADDRESS, or else starts Ray on this machine, until the block ends.

    An existing connection of this process is used and left open.

    Args:
        address: address of a cluster; `local` starts a Ray even if RAY_ADDRESS is set.
        num_cpus: logical CPUs of a local Ray; None for all of this machine.
        environment: variables of a local Ray; they override the user's.

    Raises:
        UsageError: when this process is already connected to another cluster.
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
            # Otherwise Ray sends a token only to a cluster that it has discovered on this machine.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        if is_only_here(host, port):
            # For example a Ray that this function started in another process; without this, Ray would look for it at
            # this machine's network address.
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
            "object_store_memory": object_store_bytes(),
        }
    # Ray reads most of its environment when it is imported.
    import ray

    ray_internals.check("core")
    # Ray prints notes, about lost nodes for example, that would land inside a command's JSON document.
    with nullcontext() if _end_process is None else redirect_stdout(sys.stderr):
        if address is None:
            _start_here(options)
        else:
            _init(address, options)
        try:
            with _watched(address):
                session = _session(address)
                if address is not None:
                    say(f"connected to {session}", file=sys.stderr, flush=True)
                yield session
        finally:
            if _end_process is not None:
                threading.excepthook = _report_after_ray
            with undisturbed():
                ray.shutdown()


def _start_here(options: Mapping[str, Any]) -> None:
    """Starts Ray on this machine, and once more after a failed start, at most `_STARTS` times in all."""
    import ray

    for attempt in range(1, _STARTS + 1):
        try:
            with ray_internals.whole_start(), ray_internals.lean_start():
                _init(None, options)
            return
        except StriateError as error:
            if attempt == _STARTS or isinstance(error.__cause__, ValueError):  # a setting is wrong
                raise
            ray.shutdown()
            say(f"{error}; starting it again ({attempt + 1} of {_STARTS})", file=sys.stderr, flush=True)


def _init(address: str | None, options: Mapping[str, Any]) -> None:
    import ray

    notes: list[bytes] = []
    try:
        with ray_notes_held_back(notes), ray_internals.sigterm_handler_kept():
            ray.init(address=address or "local", **options)
    except Exception as error:  # Ray raises a plain Exception if the machine is too busy to start it
        raise StriateError(_refused(address, error, notes)) from error


def _report_after_ray(failed: threading.ExceptHookArgs) -> None:
    """Reports the error of a thread, except of one that Ray Data may leave running and that fails without Ray."""
    if failed.thread is None or failed.thread.name != "ray-data-metadata-prefetch":
        threading.__excepthook__(failed)


def own_process(fail: Callable[[str], int]) -> None:
    """Marks this process as a `striate` command, not a program that uses striate as a library.

    Only then may a connection end the process when the cluster's head is lost, and redirect `sys.stdout` to stderr
    while it is open, because other libraries print to it.

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
    """Refuses an address other than the connected cluster; ray:// addresses cannot be compared."""
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
            f"Ray at {address} requires a token, and there is none here or it is wrong: set RAY_AUTH_TOKEN, or set "
            "RAY_AUTH_TOKEN_PATH to a file that contains it"
        )
    details = "".join(f"; Ray's core: {note.decode(errors='replace').strip()}" for note in notes[-1:])
    return f"cannot connect to Ray at {address}: {error}{details}; see --address and RAY_ADDRESS"


def _watched(address: str | None) -> AbstractContextManager[None]:
    """Watches the head of a cluster; not needed for a local Ray or through ray://, whose loss Ray reports itself."""
    import ray

    if address is None or address.startswith("ray://"):
        return nullcontext()
    return watched(ray.get_runtime_context().gcs_address, _end_process)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def node_environment() -> dict[str, str]:
    """Returns the environment of a Ray node that is started on this machine, the same as for `connect`."""
    return {**_ENVIRONMENT, **_local_environment(), **os.environ}


def _local_environment() -> dict[str, str]:
    """Returns the environment of a local Ray, which needs a temporary folder with an ASCII path."""
    fits = os.environ.get("TMPDIR", "").isascii()
    return _LOCAL_ENVIRONMENT if fits else _LOCAL_ENVIRONMENT | {"RAY_TMPDIR": "/tmp"}


def named_cluster(address: str | None) -> str | None:
    """Returns the address that `connect` would use; None if it would start a local Ray."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def _session(address: str | None) -> Session:
    from cluster.resources import nodes

    present = nodes()
    cpus = tuple(float(node["CPU"]) for node in present if node.get("CPU"))
    return Session(address, int(sum(cpus)), len(present), int(sum(node.get("GPU", 0) for node in present)), cpus)


@contextmanager
def undisturbed() -> Generator[None]:
    """Ignores one more Ctrl-C or SIGTERM while the block runs; the next one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored: list[int] = []

    def count(number: int, _frame: object) -> None:
        if ignored:
            os._exit(128 + number)
        ignored.append(number)

    before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed by Python
