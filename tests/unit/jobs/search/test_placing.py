"""Where the trainings of a search run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from cluster.connection.session import Session
from jobs.search.placing import Placing, attempt, round_searcher, trial_scheduler
from jobs.search.rounds import Round, Rounds, Script
from library.choosing.filter_search.space import IDENTITY, Candidate
from library.choosing.filter_search.trials import Unit, UnitResult
from library.errors import StorageError, UsageError
from library.steps.plugins import Plugin, install


def test_each_worker_has_a_gpu_or_a_cpu() -> None:
    session = Session(None, cpus=8, nodes=1, gpus=2)
    assert Placing.choose(session, "auto", None) == Placing(2, gpu=True, per_machine=2)
    assert Placing.choose(session, "1", None) == Placing(1, gpu=True, per_machine=1)
    assert Placing.choose(session, "auto", False) == Placing(8, gpu=False, per_machine=8)
    assert Placing.choose(Session(None, cpus=8, nodes=1), "3", None) == Placing(3, gpu=False, per_machine=3)


def test_workers_are_counted_by_machine_as_they_share_its_memory() -> None:
    session = Session("head:6379", cpus=20, nodes=3, node_cpus=(4, 8, 8))
    assert Placing.choose(session, "auto", False) == Placing(20, gpu=False, per_machine=8, grows=True)
    assert Placing.choose(session, "5", False) == Placing(5, gpu=False, per_machine=5)


@pytest.mark.parametrize(("gpus", "workers"), [(0, "auto"), (0, "1"), (2, "3")])
def test_gpus_that_ray_does_not_have_are_an_error_and_no_wait(gpus: int, workers: str) -> None:
    with pytest.raises(UsageError, match=f"Ray has {gpus} GPUs" if gpus else "Ray has no GPU; use --no-gpu"):
        Placing.choose(Session(None, cpus=8, nodes=1, gpus=gpus), workers, True)


def test_a_cluster_may_get_gpus_later() -> None:
    assert Placing.choose(Session("head:6379", cpus=8, nodes=1), "2", True) == Placing(2, gpu=True, per_machine=2)
    assert Placing.choose(Session("head:6379", cpus=8, nodes=1), "auto", True) == Placing(
        1, gpu=True, per_machine=1, grows=True
    )


def test_without_gpus_a_machine_has_as_many_workers_as_cpus() -> None:
    with pytest.raises(UsageError, match="Ray has 2 CPUs"):
        Placing.choose(Session(None, cpus=2, nodes=1), "3", False)


def test_a_number_of_workers_is_a_number() -> None:
    for text in ("0", "many", "-1"):
        with pytest.raises(UsageError, match="write a number from 1, or auto"):
            Placing.choose(Session(None, cpus=8, nodes=1), text, False)


@dataclass
class Ready:
    """Files of units that have been computed once the search asks for the second time, but for those left out."""

    left_out: Sequence[Unit] = ()
    asked: set[Unit] = field(default_factory=set[Unit])

    def read(self, unit: Unit) -> UnitResult | None:
        if unit in self.asked and unit not in self.left_out:
            return UnitResult(unit, np.ones(2, np.bool_), 0.1, 0.0)
        self.asked.add(unit)
        return None


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_blocks_are_handed_out_than_workers(workers: int) -> None:
    units = [Unit(Candidate("invert"), seed, "proxy", "") for seed in range(7)]

    def script() -> Script:
        yield Round("all", units, per_block=1)

    placing = Placing(workers, gpu=False, per_machine=workers)
    rounds = Rounds(script(), Ready(), workers)
    searcher = round_searcher(rounds, lambda: None, placing.most_now)
    given: list[str] = []
    for number in range(len(units)):
        if number >= workers:
            assert searcher.suggest("one more") is None
            searcher.on_trial_complete(given.pop(0), {"node": f"n{number % 2}", "error": ""})
        assert len(searcher.suggest(str(number))["units"]) == 1
        given.append(str(number))
    for name in given:
        searcher.on_trial_complete(name, {"node": "n1", "error": ""})
    assert rounds.is_finished
    assert sum(searcher.by_node.values()) == len(units)
    assert searcher.suggest("after the end") == searcher.FINISHED


@dataclass(eq=False)
class WaitingTrial:
    """A trial of Tune, as its scheduler sees it."""

    trial_id: str
    status: str = "PENDING"
    PENDING = "PENDING"


@dataclass
class Controller:
    """Trials, and those that the scheduler has stopped."""

    trials: list[WaitingTrial]
    stopped: list[str] = field(default_factory=list[str])

    def get_trials(self) -> list[WaitingTrial]:
        return self.trials

    def stop_trial(self, trial: WaitingTrial) -> None:
        trial.status = "TERMINATED"
        self.stopped.append(trial.trial_id)


def test_a_free_actor_takes_a_new_trial_unless_one_has_waited_long() -> None:
    now = [0.0]
    first, second = WaitingTrial("first"), WaitingTrial("second")
    controller, scheduler = Controller([first]), trial_scheduler(lambda _: False, lambda: now[0])
    assert scheduler.choose_trial_to_run(controller) is None
    now[0] = 20.0
    controller.trials.append(second)
    assert scheduler.choose_trial_to_run(controller) is None
    now[0] = 35.0
    assert scheduler.choose_trial_to_run(controller) is first
    first.status = "RUNNING"
    assert scheduler.choose_trial_to_run(controller) is None
    now[0] = 60.0
    assert scheduler.choose_trial_to_run(controller) is second
    # One that has lost its worker begins to wait anew.
    first.status, second.status = "PENDING", "RUNNING"
    assert scheduler.choose_trial_to_run(controller) is None


def test_a_block_that_waits_beyond_the_time_of_its_round_is_left_out() -> None:
    units = [Unit(Candidate("invert"), seed, "proxy", "") for seed in range(4)]
    now, results = [0.0], [0]

    def script() -> Script:
        results[0] = len((yield Round("all", units, until_s=10.0, per_block=1, expected_s=1.0)))

    # The third had been begun by a worker that was lost.
    rounds = Rounds(script(), Ready(units[1:2]), 3, lambda: now[0])
    searcher = round_searcher(rounds, lambda: None, lambda: 3)
    trials = [WaitingTrial(name) for name in ("begun", "waiting", "again")]
    for trial in trials:
        assert searcher.suggest(trial.trial_id) is not None
    trials[0].status = "RUNNING"
    controller, scheduler = Controller(trials), trial_scheduler(searcher.is_too_late, lambda: now[0])
    scheduler.choose_trial_to_run(controller)
    assert controller.stopped == []
    now[0] = 10.0
    scheduler.choose_trial_to_run(controller)
    assert controller.stopped == ["waiting", "again"]
    for name in controller.stopped:
        searcher.on_trial_complete(name)
    searcher.on_trial_complete("begun", {"node": "n1", "error": ""})
    assert searcher.suggest("no more") == searcher.FINISHED
    assert rounds.is_finished
    assert (results, rounds.computed, searcher.error) == ([2], 2, None)


def raised(error: Exception | None) -> Mapping[str, str]:
    """What a worker returns of a block whose training raises this error."""

    def compute(units: Sequence[str]) -> None:
        if error is not None:
            raise error

    return attempt(lambda: compute, ["unit"])


def test_an_error_of_the_network_is_returned() -> None:
    assert raised(None) == {"error": "", "failure": ""}
    assert raised(StorageError("the store is gone")) == {"error": "the store is gone", "failure": ""}
    assert raised(RuntimeError("kernel size")) == {"error": "", "failure": "RuntimeError: kernel size"}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError("no space left"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        torch.AcceleratorError("an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
    ],
    ids=["memory", "files", "GPU memory", "CPU memory", "CUDA", "cuBLAS"],
)
def test_an_error_that_may_pass_is_raised_for_another_worker(error: Exception) -> None:
    with pytest.raises(type(error)):
        raised(error)


def test_an_error_while_a_worker_is_made_ends_the_search_with_its_text() -> None:
    def make() -> Callable[[Sequence[str]], None]:
        install([Plugin("absent", "striate_plugin_absent", "import striate_absent")])
        return lambda units: None

    result = attempt(make, ["unit"])
    assert result["error"].startswith("the plugin 'absent' failed: ModuleNotFoundError")
    assert result["failure"] == ""

    def lost() -> Callable[[Sequence[str]], None]:
        raise RuntimeError("the pictures are lost with their node")

    with pytest.raises(RuntimeError, match="lost with their node"):
        attempt(lost, ["unit"])


def test_a_failure_takes_out_a_candidate_and_ends_a_search_without_filters() -> None:
    units = [Unit(candidate, 0, "proxy", "") for candidate in (Candidate("invert"), IDENTITY)]
    results: list[UnitResult] = []

    def script() -> Script:
        results.extend((yield Round("all", units, per_block=1)).values())

    rounds = Rounds(script(), Ready(units), 2)
    searcher = round_searcher(rounds, lambda: None, lambda: 2)
    assert searcher.suggest("invert")
    assert searcher.suggest("identity")
    searcher.on_trial_complete("invert", {"node": "n1", **raised(RuntimeError("kernel size"))})
    assert searcher.error is None
    searcher.on_trial_complete("identity", {"node": "n1", **raised(RuntimeError("kernel size"))})
    assert str(searcher.error) == "the recipe without a filter cannot be trained: RuntimeError: kernel size"
    assert searcher.suggest("no more") == searcher.FINISHED
    assert dict(searcher.by_node) == {}
