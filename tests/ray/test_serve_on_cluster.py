"""What `striate serve` leaves behind on a cluster that it has not started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from ray import serve

from library.errors import UsageError
from serve.endpoint import publish
from serve.launch.arguments import ServePlan
from serve.launch.on_cluster import rolled_back, running_address
from tests.waiting import until


@serve.deployment(ray_actor_options={"num_cpus": 0})
class _Answers:
    """Another user's model."""


@serve.deployment(ray_actor_options={"num_cpus": 1_000})
class _Waits:
    """A model that never starts: no cluster has so many CPUs."""


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    serve.shutdown()


def start() -> None:
    serve.start(proxy_location="Disabled", http_options={"host": "127.0.0.1", "port": 8123})


def run(deployment: Any, name: str) -> None:
    target = serve.RunTarget(deployment.bind(), name=name, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def plan(**explicit: Any) -> ServePlan:
    return ServePlan([], {}, {}, **{"host": "127.0.0.1", "port": 8000, **explicit}, explicit=frozenset(explicit))


def fail(names: Sequence[str], *steps: Callable[[], None]) -> None:
    with rolled_back(names):
        for step in steps:
            step()
        raise KeyboardInterrupt


def test_a_model_that_fails_is_removed_and_the_others_stay() -> None:
    start()
    run(_Answers, "theirs")
    with pytest.raises(KeyboardInterrupt):
        fail(["theirs", "ours"], lambda: run(_Waits, "ours"))
    until(lambda: set(serve.status().applications) == {"theirs"})


def test_a_serve_started_for_a_failed_model_ends_unless_others_use_it() -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(["ours"], start, lambda: run(_Waits, "ours"))
    assert running_address(plan()) is None
    with pytest.raises(KeyboardInterrupt):
        fail(["ours"], start, lambda: run(_Answers, "theirs"), lambda: run(_Waits, "ours"))
    until(lambda: set(serve.status().applications) == {"theirs"})


def test_a_running_serve_is_used_at_its_own_address_only() -> None:
    assert running_address(plan(port=9000)) is None
    start()
    assert running_address(plan()) == ("127.0.0.1", 8123)
    assert running_address(plan(port=8123)) == ("127.0.0.1", 8123)
    with pytest.raises(UsageError, match=r"--port 9000: .* listens on 127.0.0.1:8123; leave --port out"):
        running_address(plan(port=9000))
    # Behind HAProxy, Serve itself does not know the server's address.
    publish("0.0.0.0", 8123)
    with pytest.raises(UsageError, match=r"--host 127.0.0.1: .* listens on 0.0.0.0:8123"):
        running_address(plan(host="127.0.0.1"))
