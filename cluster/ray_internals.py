"""The only module that imports private parts of Ray; each function says why Ray's public interface does not suffice.

The names below are those of Ray 2.60. `check` refuses a Ray that lacks one of them before anything starts, with a
message that names the version to install (decision 0012 gives the reasons). Modules of Ray are imported inside the
functions, so importing this one costs nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from library.errors import StriateError

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

#: A part of Ray that a command uses: all need the core, the other parts are needed only by what they start.
Part = Literal["cluster", "core", "data", "serve", "submit", "train"]


@dataclass(frozen=True)
class _Need:
    """Private names of one module of Ray, or of a class in it, and their purpose in striate."""

    module: str
    names: Sequence[str]
    purpose: str


# Methods of Ray's node that start processes which a local Ray does not need; see `lean_start`.
_UNUSED_STARTS = ("start_monitor", "start_log_monitor", "start_api_server")

# Methods of Ray Data that report to an actor of statistics; see `lean_data`.
_UNUSED_REPORTS = ("update_execution_metrics", "update_iteration_metrics", "register_dataset_to_stats_actor")

_NEEDS: Mapping[Part, Sequence[_Need]] = {
    "cluster": (
        _Need("ray._private.utils", ("set_sigterm_handler",), "ending a command by SIGTERM while Ray starts"),
        _Need(
            "ray._private.node",
            (
                "Node.node_id",
                "Node.gcs_address",
                "Node.webui_url",
                "Node.live_processes",
                "Node.remaining_processes_alive",
            ),
            "holding the nodes of `striate cluster up`",
        ),
    ),
    "core": (
        _Need(
            "ray.experimental.internal_kv",
            ("_internal_kv_put", "_internal_kv_get", "_internal_kv_list", "_internal_kv_del"),
            "the progress of its workers",
        ),
        _Need("ray._private.utils", ("set_sigterm_handler",), "ending a command by SIGTERM while Ray starts"),
        _Need("ray._private.node", tuple(f"Node.{name}" for name in _UNUSED_STARTS), "a Ray that starts sooner"),
        _Need(
            "ray._private.node",
            ("Node.start_head_processes", "Node.live_processes", "Node.kill_all_processes"),
            "ending a Ray that did not start",
        ),
    ),
    "data": (
        _Need("ray._private.worker", ("_global_node",), "recognising a Ray that this process has started"),
        _Need(
            "ray.data._internal.stats",
            tuple(f"_StatsManager.{name}" for name in (*_UNUSED_REPORTS, "gen_dataset_id_from_stats_actor")),
            "shard jobs that start sooner",
        ),
        _Need(
            "ray.data._internal.execution.streaming_executor",
            ("create_cluster_autoscaler",),
            "shard jobs that start sooner",
        ),
        _Need("ray.data._internal.cluster_autoscaler", ("ClusterAutoscaler",), "shard jobs that start sooner"),
    ),
    "serve": (
        _Need("ray.serve.context", ("_get_global_client",), "finding the Ray Serve of a cluster"),
        _Need(
            "ray.serve._private.replica",
            ("add_port_to_grpc_server",),
            "keeping the ports of replicas closed to other machines",
        ),
    ),
    "submit": (
        _Need("ray._private.runtime_env.packaging", ("_dir_travel", "_get_excludes"), "listing what a job uploads"),
    ),
    "train": (
        _Need(
            "ray.train.v2.api.data_parallel_trainer", ("DataParallelTrainer",), "a driver that does not import torch"
        ),
        *(
            _Need(f"ray.train.v2._internal.{module}", (name,), "a training without processes that only a cluster needs")
            for module, name in (
                ("callbacks.datasets", "DatasetsCallback"),
                ("callbacks.placement_group_callback", "PlacementGroupCleanerCallback"),
                ("execution.scaling_policy", "FixedScalingPolicy"),
            )
        ),
    ),
}


def check(part: Part) -> None:
    """Refuses a Ray of a version that striate does not support, or without a private name that `part` needs.

    Imports the modules that this part needs anyway.

    Raises:
        StriateError: names the version of Ray, what it lacks and the versions that work.
    """
    version, needed = metadata.version("ray"), _requirement()
    if not needed.specifier.contains(version):
        raise StriateError(f"Ray {version} is too old or too new for striate: install {needed}")
    for need in _NEEDS[part]:
        try:
            module: object = import_module(need.module)
        except ImportError:
            raise StriateError(_lacks(need.module, need.purpose)) from None
        for name in need.names:
            try:
                attrgetter(name)(module)
            except AttributeError:
                raise StriateError(_lacks(f"{need.module}.{name}", need.purpose)) from None


def trainer() -> type[DataParallelTrainer]:
    """Returns the base of Ray Train's `TorchTrainer`.

    `ray.train.torch` imports torch in the driver and, with what the driver sends, in Ray Train's controller, before a
    worker starts: 2.3 s of CPU each (Ray 2.60, torch 2.15). Under its public name Ray has an older trainer.
    """
    check("train")
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


def local_trainer() -> type[DataParallelTrainer]:
    """Returns `trainer()` without the actors that a local Ray does not need.

    The first distributes datasets of Ray Data, which we do not use; the second cleans up after a killed driver, whose
    local Ray ends with it; the third asks an autoscaler, which a local Ray lacks. Each is a process that spends seconds
    on imports: together they took 20 s of the 85 s of CPU of a small training (Ray 2.60, 2 cores). Ray Train has no
    setting for them.
    """
    base = trainer()
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class FixedHere(FixedScalingPolicy):
        """A scaling policy that asks no autoscaler."""

        def after_controller_start(self, train_run_context: Any) -> None: ...

        def _maybe_send_resource_request(self) -> None: ...

    class LocalTrainer(base):
        def _create_default_callbacks(self) -> list[Any]:
            unused = (DatasetsCallback, PlacementGroupCleanerCallback)
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            if not self.scaling_config.elasticity_enabled:
                arguments["scaling_policy"] = FixedHere(self.scaling_config)
            return super()._initialize_and_run_controller(**arguments)

    return LocalTrainer


@dataclass(frozen=True)
class HeldNode:
    """A node that this process started with `ray.cluster_utils.Cluster`, which returns a private class of Ray.

    Attributes:
        node: Ray's own object for the node.
        node_id: Ray's id of the node.
        gcs_address: host and port of the cluster.
        dashboard: host and port of the cluster's dashboard, if it has one.
        pid: id of the process whose end is the end of the node.
    """

    node: Any
    node_id: str
    gcs_address: str
    dashboard: str | None
    pid: int

    @classmethod
    def of(cls, node: Any) -> HeldNode:
        """Returns the description of a node from `Cluster.add_node`.

        Raises:
            StriateError: when the node has ended already.
        """
        processes = dict(node.live_processes())
        process = processes.get("gcs_server") or processes.get("raylet")
        if process is None:
            raise StriateError("it ended immediately")
        return cls(node, node.node_id, node.gcs_address, node.webui_url or None, process.pid)

    def is_whole(self) -> bool:
        """Returns whether all its processes are running; Ray's public interface reports only whether all nodes are."""
        return self.node.remaining_processes_alive()


def packed_files(root: str, excludes: Sequence[str], most: int) -> dict[str, int]:
    """Returns the sizes in bytes, by path, of the files below `root` that Ray packs as a job's working directory.

    Uses the walk of Ray's own packaging, with its rules for .gitignore, .rayignore, excludes and links, and stops after
    `most` files. Ray has no public function that lists what it would upload.
    """
    check("submit")
    from ray._private.runtime_env import packaging

    sizes: dict[str, int] = {}

    class Enough(Exception):
        """Ends the walk: Ray follows a link to its own folder some forty times, and two such links endlessly."""

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size
        if len(sizes) >= most:
            raise Enough

    ray_packaging: Any = packaging
    excluded = ray_packaging._get_excludes(Path(root), list(excludes))
    respects_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"  # as Ray reads it
    quiet = logging.Logger("packed files", logging.CRITICAL)
    with suppress(Enough):
        ray_packaging._dir_travel(Path(root), [excluded], add, respects_gitignore, quiet)
    return sizes


@contextmanager
def sigterm_handler_kept() -> Generator[None]:
    """Keeps this program's handler of SIGTERM, if it has one, during and after `ray.init`.

    Ray replaces it in its first second by a handler that ends the process without any cleanup. It has no setting for
    this, and restoring ours after `ray.init` would be too late for a SIGTERM while Ray starts.
    """
    from ray._private import utils

    handler, install = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def install_nothing(_handler: object) -> None: ...

    utils.set_sigterm_handler = install_nothing
    try:
        yield
    finally:
        utils.set_sigterm_handler = install
        signal.signal(signal.SIGTERM, handler)  # Ray's core has replaced the handler of the process, below Python's


@contextmanager
def whole_start() -> Generator[None]:
    """Ends all processes of a local Ray that was started in the block, if the block fails.

    If `ray.init` fails, Ray leaves them running until this process ends, and the agents of a node that is killed while
    they start outlive even that.
    """
    from ray._private.node import Node

    ray_node: Any = Node
    start, nodes = ray_node.start_head_processes, list[Any]()

    def start_noted(node: Any) -> None:
        nodes.append(node)
        start(node)

    ray_node.start_head_processes = start_noted
    try:
        yield
    except Exception:  # whatever Ray raises, nothing that it started may stay; the caller gets the error
        for node in nodes:
            _end(node)
        raise
    finally:
        ray_node.start_head_processes = start


def _end(node: Any) -> None:
    """Kills the processes of a node, and what these have started."""
    running = [process.pid for _, process in node.live_processes()]
    for pid in running:  # stopped, they start no more processes
        os.kill(pid, signal.SIGSTOP)
    children = [child for pid in running for child in _descendants(pid)]
    node.kill_all_processes(check_alive=False, wait=True)
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Returns the processes that a process has started, and those that they have; none on a system without /proc."""
    pids: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (thread / "children").read_text(encoding="ascii").split()
        except OSError:  # it has ended
            continue
        pids += [each for child in children for each in (int(child), *_descendants(int(child)))]
    return pids


@contextmanager
def lean_start() -> Generator[None]:
    """Keeps `ray.init` from starting three processes that a local Ray of one command does not need.

    These are the autoscaler's monitor, as nothing can be added; the log monitor, which would send workers' output to
    the terminal; and the API server, which without a dashboard only reports usage, and that is off. `ray.init` waits
    for the last one, and together they took 3.6 s of CPU (Ray 2.60). Ray has no setting for them.
    """
    from ray._private.node import Node

    ray_node: Any = Node
    methods = {name: getattr(ray_node, name) for name in _UNUSED_STARTS}

    def start_nothing(_node: object, **_arguments: object) -> None: ...

    for name in methods:
        setattr(ray_node, name, start_nothing)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(ray_node, name, method)


@contextmanager
def lean_data() -> Generator[None]:
    """Keeps Ray Data in the block from starting two actors that a local Ray without a dashboard does not need.

    The first collects statistics for the dashboard, and every job waits for it before its own workers start; the second
    divides an autoscaler's nodes among jobs. Together they took 3.5 s of the 12.5 s of CPU of a prediction of 500
    pictures (Ray 2.60, 2 cores). Ray Data has no setting for them. On a cluster nothing is changed.
    """
    import ray

    ray_worker: Any = import_module("ray._private.worker")
    node = ray_worker._global_node
    if node is None or not node.is_head() or node.webui_url:
        yield
        return
    check("data")
    from ray.data import ExecutionResources
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import streaming_executor

    total = ExecutionResources.from_resource_dict(dict[str, float](ray.cluster_resources()))

    class FixedHere(ClusterAutoscaler):
        """Resources of one node that stays as it is."""

        def try_trigger_scaling(self) -> None: ...

        def on_executor_shutdown(self) -> None: ...

        def get_total_resources(self) -> ExecutionResources:
            return total

    def fixed_here(*_: object, **__: object) -> ClusterAutoscaler:
        return FixedHere()

    def report_nothing(*_: object, **__: object) -> None: ...

    def random_id() -> str:
        return uuid.uuid4().hex

    manager: Any = stats._StatsManager  # pyright: ignore[reportPrivateUsage]
    executor: Any = streaming_executor
    replaced: list[tuple[Any, str, Any]] = [
        *((manager, name, staticmethod(report_nothing)) for name in _UNUSED_REPORTS),
        (manager, "gen_dataset_id_from_stats_actor", staticmethod(random_id)),
        (executor, "create_cluster_autoscaler", fixed_here),
    ]
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)


def _lacks(what: str, purpose: str) -> str:
    version = metadata.version("ray")
    return f"Ray {version} lacks {what}, which striate needs for {purpose}: install {_requirement()}"


def _requirement() -> Requirement:
    """Returns the version of Ray that the installed striate requires; any version if striate is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("striate") or ()
    except metadata.PackageNotFoundError:
        lines = ()
    return Requirement(next((line for line in lines if line.startswith("ray[")), "ray"))


# The head's key-value store. Ray's libraries share small facts through it; its functions have no public name. An actor
# would do the same, but on a small machine each process adds a second to the start of a job.


def kv_put(key: str, value: bytes, *, namespace: str) -> None:
    """Sets the value of a key of the cluster's key-value store."""
    _kv()._internal_kv_put(key, value, namespace=namespace)


def kv_get(key: str, *, namespace: str) -> bytes | None:
    """Returns the value of a key; None if there is none."""
    return _kv()._internal_kv_get(key, namespace=namespace)


def kv_keys(prefix: str, *, namespace: str) -> list[str]:
    """Returns the keys that begin with `prefix`, sorted."""
    return sorted(bytes(key).decode() for key in _kv()._internal_kv_list(prefix, namespace=namespace))


def kv_delete(key: str, *, namespace: str) -> None:
    """Deletes a key, if it exists."""
    _kv()._internal_kv_del(key, namespace=namespace)


def kv_delete_prefix(prefix: str, *, namespace: str) -> None:
    """Deletes all keys that begin with `prefix`."""
    _kv()._internal_kv_del(prefix, del_by_prefix=True, namespace=namespace)


def _kv() -> Any:
    from ray.experimental import internal_kv

    return internal_kv


def serve_address() -> tuple[str, int] | None:
    """Returns the host and port of this cluster's Ray Serve; None if none is running.

    `ray.serve.status()` does not contain them, and is the same for a Serve without applications as for no Serve.
    """
    from ray.serve.context import _get_global_client  # pyright: ignore[reportPrivateUsage]

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def keep_replica_on_loopback() -> None:
    """Keeps the port for calls between deployments on loopback, like Ray's own ports; called in a replica before it is
    ready.

    Serve opens the port on all interfaces (`[::]:0`) and has no setting for it. On a cluster, where Ray's address is
    not loopback, the port stays open: other nodes call it.
    """
    import ray
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    serve_replica: Any = replica
    add_port = serve_replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> int:
        return add_port(server, address.replace("[::]", "127.0.0.1"))

    serve_replica.add_port_to_grpc_server = add_loopback_port
