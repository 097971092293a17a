"""A pool of Ray actors with work queued at each, and what to do when one is lost."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.console import say

_TaskT = TypeVar("_TaskT")

# Lost before they were up, one after the other with no success between: then something is wrong with all of them.
_MAX_LOST_STARTS = 16
# A worker that has a place is up long before, and whoever looks on would take silence for a fault.
_WAITS_S = 15.0


class WorkerPool(Generic[_TaskT]):
    """Actors of one class, each with one task in work and the next one waiting.

    Ray's own retries are off: it would tie a lost actor's tasks to its successor, which may wait for ever for a CPU,
    and would count those as tried that were only waiting there.

    Args:
        actor: a class whose `run(task)` gives a row; whatever it raises ends the pool's run.
        arguments: of its constructor.
        num_workers: how many.
        num_cpus: logical CPUs of each.
        num_gpus: GPUs of each.
    """

    def __init__(
        self, actor: type, arguments: Sequence[Any], num_workers: int, *, num_cpus: float = 1, num_gpus: float = 0
    ) -> None:
        self._actor: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(actor)
        self._arguments = arguments
        self._alive: set[Any] = set()
        self._running: dict[Any, tuple[Any, _TaskT | None]] = {}
        self._lost_starts = 0
        self._asked = f"{num_cpus:g} CPU" + (f" and {num_gpus:g} GPU" if num_gpus else "")
        self._tells_waiting = True  # once, until a worker is up again
        for _ in range(num_workers):
            self._start()

    def _start(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._alive.add(worker)
        # Work goes only to a worker that is up: one that waits for a CPU would keep its tasks waiting with it.
        self._running[worker.__ray_ready__.remote()] = (worker, None)

    def run(self, tasks: Sequence[_TaskT]) -> Iterator[Any]:
        """The row of each task, as they are done.

        Raises:
            RayTaskError: what a task raised.
            RayError: when no worker comes up.
        """
        waiting, left = deque(tasks), len(tasks)
        while left:
            for done in self._ready():
                worker, task = self._running.pop(done)
                try:
                    row = ray.get(done)
                except RayTaskError:
                    raise
                except RayError as error:
                    if task is not None:
                        waiting.appendleft(task)
                    self._replace(worker, error, starting=task is None)
                    # Its successor may find no place, and who has run out of work asks for none.
                    for idle in self._alive - {busy for busy, _ in self._running.values()}:
                        self._hand_out(idle, waiting)
                    continue
                self._lost_starts, self._tells_waiting = 0, True
                self._hand_out(worker, waiting)
                # Near the end nothing is queued: a task that waits at one worker could be in work at another.
                if task is None and len(waiting) > len(self._alive):
                    self._hand_out(worker, waiting)
                if task is not None:
                    left -= 1
                    yield row

    def _ready(self) -> list[Any]:
        """All that are done, at least one: a look costs by the number of workers, which may be thousands."""
        running = list(self._running)
        ready, _ = ray.wait(running, num_returns=len(running), timeout=0)
        if not ready and self._tells_waiting and all(task is None for _, task in self._running.values()):
            ready, _ = ray.wait(running, num_returns=1, timeout=_WAITS_S)
            if not ready:
                self._tell_waiting()
        return ready or ray.wait(running, num_returns=1)[0]

    def _tell_waiting(self) -> None:
        self._tells_waiting = False
        free, there = ray.available_resources(), ray.cluster_resources()
        cpus = f"{free.get('CPU', 0):g} of {there.get('CPU', 0):g} CPUs"
        gpus = f" and {free.get('GPU', 0):g} of {there.get('GPU', 0):g} GPUs" if "GPU" in there else ""
        say(
            f"no worker has a place yet: each asks for {self._asked}, and Ray has {cpus}{gpus} free; other jobs hold "
            "the rest, or nodes have still to come (`ray status`)",
            file=sys.stderr,
            flush=True,
        )

    def _hand_out(self, worker: Any, waiting: deque[_TaskT]) -> None:
        if waiting and worker in self._alive:
            task = waiting.popleft()
            self._running[worker.run.remote(task)] = (worker, task)

    def _replace(self, worker: Any, error: RayError, *, starting: bool) -> None:
        if worker not in self._alive:
            return  # the second task of one that is replaced already
        self._alive.discard(worker)
        ray.kill(worker)  # it may only be out of reach
        if starting:
            self._lost_starts += 1
            if self._lost_starts >= _MAX_LOST_STARTS or getattr(error, "actor_init_failed", False):
                raise error
        self._start()

    def stop(self) -> None:
        """End all workers, whatever they do."""
        for worker in self._alive:
            ray.kill(worker)
        self._alive.clear()
