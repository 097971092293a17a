"""What a command leaves of Serve on a cluster that is not its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from ray import serve

from library.errors import UsageError
from serve.launch.on_cluster import listens_at, publish, taken_back
from serve.launch.request import ServePlan
from tests.waiting import until


@serve.deployment(ray_actor_options={"num_cpus": 0})
class _Answers:
    """A model of somebody's."""


@serve.deployment(ray_actor_options={"num_cpus": 1_000})
class _Waits:
    """One that never comes up."""


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    serve.shutdown()


def start() -> None:
    serve.start(proxy_location="Disabled", http_options={"host": "127.0.0.1", "port": 8123})


def run(deployment: Any, name: str) -> None:
    target = serve.RunTarget(deployment.bind(), name=name, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def asks(**asked: Any) -> ServePlan:
    return ServePlan([], {}, {}, **{"host": "127.0.0.1", "port": 8000, **asked}, asked=frozenset(asked))


def fail(names: Sequence[str], *steps: Callable[[], None]) -> None:
    with taken_back(names):
        for step in steps:
            step()
        raise KeyboardInterrupt


def test_what_does_not_come_up_is_taken_back_and_what_was_there_stays() -> None:
    start()
    run(_Answers, "theirs")
    with pytest.raises(KeyboardInterrupt):
        fail(["theirs", "ours"], lambda: run(_Waits, "ours"))
    until(lambda: set(serve.status().applications) == {"theirs"})


def test_a_serve_that_was_started_for_it_ends_with_it_unless_others_use_it() -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(["ours"], start, lambda: run(_Waits, "ours"))
    assert listens_at(asks()) is None
    with pytest.raises(KeyboardInterrupt):
        fail(["ours"], start, lambda: run(_Answers, "theirs"), lambda: run(_Waits, "ours"))
    until(lambda: set(serve.status().applications) == {"theirs"})


def test_a_serve_that_runs_is_used_where_it_is_and_nowhere_else() -> None:
    assert listens_at(asks(port=9000)) is None
    start()
    assert listens_at(asks()) == ("127.0.0.1", 8123)
    assert listens_at(asks(port=8123)) == ("127.0.0.1", 8123)
    with pytest.raises(UsageError, match=r"--port 9000: .* listens on 127.0.0.1:8123; leave --port out"):
        listens_at(asks(port=9000))
    # Behind HAProxy it does not know by itself where it is asked.
    publish("0.0.0.0", 8123)
    with pytest.raises(UsageError, match=r"--host 127.0.0.1: .* listens on 0.0.0.0:8123"):
        listens_at(asks(host="127.0.0.1"))
