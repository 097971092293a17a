"""A server that runs: started, waited for, stopped."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import haproxy
from cluster.session import connect
from library.errors import StriateError
from serve.deploy import applications, targets
from serve.plan import ServePlan

#: A large model may have to be fetched, compiled and probed.
_START_S = 900.0
_POLL_S = 0.2
#: Serve looks for itself whether its parts live; this is only to end when all of Ray has.
_ALIVE_S = 5.0


@contextmanager
def running(plan: ServePlan, address: str | None = None) -> Generator[None]:
    """Serve `plan` within the block, which begins when all models answer.

    Args:
        plan: what to serve.
        address: of a Ray cluster; there the models are put beside what it serves already, and stay after the block.

    Raises:
        StriateError: when a model does not come up, saying why.
    """
    with tempfile.TemporaryDirectory(prefix="striate-serve-") as folder:
        environment = haproxy.environment(Path(folder))
        # Twice the CPUs: a new version of a model comes up beside the old one.
        with connect(address, num_cpus=2 * _cpus(plan), environment=environment) as session:
            from ray import serve

            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            serve.start(
                proxy_location="EveryNode" if session.address else "HeadOnly",
                http_options={"host": plan.host, "port": plan.port},
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
            made = applications(plan.models, plan.settings, plan.scale)
            try:
                serve.run_many(targets(made), wait_for_applications_running=False)
                _wait([application["name"] for application in made])
                yield
            finally:
                if session.address is None:
                    serve.shutdown()


def wait_for_signal() -> None:
    """Return at Ctrl-C or SIGTERM."""
    stop = threading.Event()

    def on_signal(*_: Any) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stop.wait(_ALIVE_S):
            _check_alive()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cpus(plan: ServePlan) -> int:
    import os

    wanted = plan.scale.cpus * plan.scale.replicas[1] * len(plan.models)
    return max(os.cpu_count() or 1, int(wanted) + 1)


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
        time.sleep(_POLL_S)


def _reason(messages: Sequence[str]) -> str:
    """The last line of an error in a replica that says something."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["no reason is known"])[-1]
