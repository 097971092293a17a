"""A running server: starts it, waits until it answers, and stops it."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import ray_internals
from cluster.connection.session import connect, named_cluster
from library.errors import StriateError
from serve.endpoint import free_port, publish
from serve.launch import haproxy
from serve.launch.arguments import ServePlan
from serve.launch.deploy import targets
from serve.launch.on_cluster import check_cluster, head_host, rolled_back, running_address

#: Requests are answered in Serve's own event loop, without a second one behind it; none of our code blocks it.
_ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # On a busy machine the proxy's start takes longer than Serve's default of 5 seconds.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "55",
    # Every process of Serve needs these: Ray's first workers import them while this process does.
    "RAY_preload_python_modules": "ray.serve,fastapi",
}
#: Where Serve's replicas listen behind HAProxy.
_BEHIND = "127.0.0.1"
#: Longest start: a large model may have to be downloaded, compiled and probed.
_START_S = 900.0
_POLL_S = 0.2
_PROXY_S = 60.0
#: Statuses with which an application answers, with or without keys.
_ANSWERED = (200, 401)
#: Ends an error message that only repeats another's traceback.
_TRACE = "Traceback (most recent call last):"
#: Precedes the message of one of our own errors in a traceback.
_OURS = re.compile(r"^library\.errors\.\w+: ")
#: How often to check that Ray still runs; Serve itself replaces replicas that die.
_ALIVE_S = 5.0


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        address: its URL.
        stays: whether it keeps running after this process, on a cluster.
    """

    address: str
    stays: bool


@contextmanager
def running(plan: ServePlan, address: str | None = None) -> Generator[Server]:
    """Serves `plan` within the block, which begins when all models answer.

    Args:
        plan: the server to start.
        address: address of a Ray cluster. The models are added to those that it serves already and stay there after
            the block; its proxies may learn of them some moments later.

    Raises:
        UsageError: when the port is in use, or on a cluster for everything that `running_address` and `check_cluster`
            refuse.
        StriateError: when a model does not start, with the reason; on a cluster it is removed again.
    """
    cluster = named_cluster(address)
    port = plan.port if cluster else free_port(plan.host, plan.port)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="striate-serve-"))
        behind = (
            {}
            if cluster
            else haproxy.environment(
                Path(folder),
                f"{plan.host}:{port}",
                haproxy.Limits(_max_requests(plan), plan.body_timeout_s, plan.max_body_bytes),
            )
        )
        # Twice the CPUs: a new version of a model starts beside the old one.
        session = stack.enter_context(connect(address, num_cpus=2 * _cpus(plan), environment=_ENVIRONMENT | behind))
        # Ray prints messages about itself, such as the death of a replica, which its log files have too.
        stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        ray_internals.check("serve")
        from ray import serve

        # Ray has installed a handler that ends the process immediately.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        names = [application.name for application in plan.applications]
        if not cluster:
            stack.callback(serve.shutdown)
            _start(_BEHIND if behind else plan.host, port, "HeadOnly")
            if behind:
                publish(plan.host, port)
            _run(plan, names)
            url = _url(plan.host, port)
            _wait_for_proxy(url, [application.route_prefix for application in plan.applications])
        else:
            running_at = running_address(plan)
            host, port = running_at or (plan.host, plan.port)
            check_cluster(plan, session, host)
            with rolled_back(names):
                if running_at is None:
                    _start(host, port, "EveryNode")
                    # Another command may have started Serve in the meantime.
                    host, port = running_address(plan) or (host, port)
                    check_cluster(plan, session, host)
                _run(plan, names)
            url = _url(head_host(host, cluster), port)
        yield Server(url, cluster is not None)


def ready_message(plan: ServePlan, server: Server, *, as_json: bool) -> str:
    """Returns the message that the command prints when all models answer: text, or one JSON document."""
    if as_json:
        models: list[dict[str, Any]] = [
            {"name": name, "bundle": plan.bundles[name], "bundle_id": record.id, "classes": len(record.classes)}
            for name, record in plan.records.items()
        ]
        return json.dumps({"address": server.address, "models": models})
    lines = [
        f"  {name}: {len(record.classes)} classes, bundle {record.id[:12]}, POST /models/{name}/predict"
        for name, record in plan.records.items()
    ]
    end = "it keeps running; `serve shutdown` stops it" if server.stays else "Ctrl-C stops it"
    return "\n".join([f"{server.address} is ready; the API is at {server.address}/docs; {end}", *lines])


def _start(host: str, port: int, location: str) -> None:
    from ray import serve
    from ray.exceptions import RayError

    try:
        serve.start(
            proxy_location=location,
            http_options={"host": host, "port": port},
            logging_config={"enable_access_log": False},
        )
    except (RayError, RuntimeError, TimeoutError) as error:
        raise StriateError(f"Ray Serve does not start: {_reason([str(error)])}") from error


def _run(plan: ServePlan, names: Sequence[str]) -> None:
    from ray import serve

    serve.run_many(targets(plan.applications, plan.plugins), wait_for_applications_running=False)
    _wait(names)


def wait_for_signal() -> None:
    """Returns at Ctrl-C or SIGTERM.

    Raises:
        StriateError: when Ray has ended.
    """
    try:
        while True:
            time.sleep(_ALIVE_S)  # interrupted by the signal
            _check_alive()
    except KeyboardInterrupt:
        return


def _url(host: str, port: int) -> str:
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _max_requests(plan: ServePlan) -> int:
    """Returns the most requests in progress in a replica: as many as pictures, since each has at least one."""
    return max(model.max_queued for model in plan.models)


def _cpus(plan: ServePlan) -> int:
    return max(os.cpu_count() or 1, math.ceil(sum(each.most * each.cpus for each in plan.replicas)))


def _check_alive() -> None:
    from ray import serve

    try:
        serve.status()
    except Exception as error:  # whatever Ray raises after it has ended
        raise StriateError(f"Ray has ended: {type(error).__name__}") from error


def _wait(names: Sequence[str]) -> None:
    """Waits until all applications run."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    end = time.monotonic() + _START_S
    while True:
        states = {name: state for name, state in serve.status().applications.items() if name in names}
        for name, state in states.items():
            if state.status == ApplicationStatus.DEPLOY_FAILED:
                reasons = [deployment.message for deployment in state.deployments.values()]
                raise StriateError(f"'{name}' cannot be served: {_reason([state.message, *reasons])}")
        if len(states) == len(names) and all(s.status == ApplicationStatus.RUNNING for s in states.values()):
            return
        if time.monotonic() > end:
            late = [name for name in names if name not in states or states[name].status != ApplicationStatus.RUNNING]
            raise StriateError(f"these models are still not ready after {_START_S:.0f} s: {', '.join(late)}")
        time.sleep(_POLL_S)  # Serve has no event for this


def _wait_for_proxy(url: str, prefixes: Sequence[str]) -> None:
    """Waits until the proxy knows all applications: Serve reports them as running before that."""
    end = time.monotonic() + _PROXY_S
    for prefix in prefixes:
        while _status(url + prefix.rstrip("/") + "/") not in _ANSWERED:
            if time.monotonic() > end:
                raise StriateError(f"{url}{prefix} does not answer; does another program use the port?")
            time.sleep(_POLL_S)  # HAProxy has no event for this


def _status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=_PROXY_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _reason(messages: Sequence[str]) -> str:
    """Returns the last line of a replica's error that gives a reason."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line and not line.endswith(_TRACE)]
    return _OURS.sub("", (errors or lines or ["Ray gives no reason"])[-1])
