"""A server that runs: started, waited for, stopped."""

from __future__ import annotations

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

from cluster import ray_internals
from cluster.connection.session import connect, named_cluster
from library.errors import StriateError
from serve.launch import haproxy
from serve.launch.deploy import MODEL_PATH, ModelArgs, targets
from serve.launch.exposure import free_port
from serve.launch.on_cluster import at_head, check_cluster, listens_at, publish, taken_back
from serve.launch.request import ServePlan

#: Requests are answered in the event loop of Serve itself, not in a second one behind it; nothing of ours holds it up.
_ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # On a busy machine its start takes longer than the 5 seconds after which Serve gives it up.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "55",
    # What every process of Serve needs: Ray's first ones read it while this one still does, too.
    "RAY_preload_python_modules": "ray.serve,fastapi",
}
#: Where replicas listen whom HAProxy asks for others.
_BEHIND = "127.0.0.1"
#: A large model may have to be fetched, compiled and probed.
_START_S = 900.0
_POLL_S = 0.2
_PROXY_S = 60.0
#: Of an application, with a key or without.
_ANSWERED = (200, 401)
#: An error that is nothing but another's trace.
_TRACE = "Traceback (most recent call last):"
#: Leads an error of ours in a trace; what follows is a sentence.
_OURS = re.compile(r"^library\.errors\.\w+: ")
#: Serve looks for itself whether its parts live; this is only to end when all of Ray has.
_ALIVE_S = 5.0


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        address: where it is asked.
        stays: whether it goes on without this process, on a cluster.
    """

    address: str
    stays: bool


@contextmanager
def running(plan: ServePlan, address: str | None = None) -> Generator[Server]:
    """Serve `plan` within the block, which begins when all models answer.

    Args:
        plan: what to serve.
        address: of a Ray cluster; there the models are put beside what it serves already, and stay after the block. Its
            proxies may hear of them some moments later.

    Raises:
        UsageError: when the port is taken, or for what `listens_at` and `check_cluster` refuse on a cluster.
        StriateError: when a model does not come up, saying why; on a cluster it is taken back.
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
                haproxy.Limits(_most_at_once(plan), plan.body_timeout_s, plan.max_body_bytes),
            )
        )
        # Twice the CPUs: a new version of a model comes up beside the old one.
        session = stack.enter_context(connect(address, num_cpus=2 * _cpus(plan), environment=_ENVIRONMENT | behind))
        # Ray prints notes on its own affairs, as that a replica has died, which its log files have too.
        stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        ray_internals.check("serve")
        from ray import serve

        # Ray has put a handler of its own there, which ends the process without any ceremony.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        names = [application["name"] for application in plan.applications]
        if not cluster:
            stack.callback(serve.shutdown)
            _start(_BEHIND if behind else plan.host, port, "HeadOnly")
            if behind:
                publish(plan.host, port)
            _run(plan, names)
            url = _url(plan.host, port)
            _wait_for_proxy(url, [application["route_prefix"] for application in plan.applications])
        else:
            there = listens_at(plan)
            host, port = there or (plan.host, plan.port)
            check_cluster(plan, session, host)
            with taken_back(names):
                if there is None:
                    _start(host, port, "EveryNode")
                    # Another command may have been faster.
                    host, port = listens_at(plan) or (host, port)
                    check_cluster(plan, session, host)
                _run(plan, names)
            url = _url(at_head(host, cluster), port)
        yield Server(url, cluster is not None)


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

    serve.run_many(targets(plan.applications), wait_for_applications_running=False)
    _wait(names)


def wait_for_signal() -> None:
    """Return at Ctrl-C or SIGTERM.

    Raises:
        StriateError: when Ray has ended.
    """
    try:
        while True:
            time.sleep(_ALIVE_S)  # a signal ends it at once
            _check_alive()
    except KeyboardInterrupt:
        return


def _url(host: str, port: int) -> str:
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _most_at_once(plan: ServePlan) -> int:
    """Requests in a replica: a request has one picture at least."""
    return max(
        ModelArgs.model_validate(made["args"]).max_queued
        for made in plan.applications
        if made["import_path"] == MODEL_PATH
    )


def _cpus(plan: ServePlan) -> int:
    return max(os.cpu_count() or 1, math.ceil(sum(each.most * each.cpus for each in plan.replicas)))


def _check_alive() -> None:
    from ray import serve

    try:
        serve.status()
    except Exception as error:  # whatever Ray raises when it is gone
        raise StriateError(f"Ray has ended: {type(error).__name__}") from error


def _wait(names: Sequence[str]) -> None:
    """Until all applications answer."""
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
            raise StriateError(f"after {_START_S:.0f} s these still do not answer: {', '.join(late)}")
        time.sleep(_POLL_S)  # Serve tells nobody how it goes: it is asked


def _wait_for_proxy(url: str, prefixes: Sequence[str]) -> None:
    """Until the proxy has heard of all applications: Serve calls them running before that."""
    end = time.monotonic() + _PROXY_S
    for prefix in prefixes:
        while _status(url + prefix.rstrip("/") + "/") not in _ANSWERED:
            if time.monotonic() > end:
                raise StriateError(f"{url}{prefix} does not answer; is something else listening there?")
            time.sleep(_POLL_S)  # HAProxy tells nobody that it has heard


def _status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=_PROXY_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _reason(messages: Sequence[str]) -> str:
    """The last line of an error in a replica that says something."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line and not line.endswith(_TRACE)]
    return _OURS.sub("", (errors or lines or ["no reason is known"])[-1])
