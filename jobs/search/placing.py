"""Ray Tune places the units of a search on the cluster, and repeats what a lost worker did not finish.

Which units are wanted is decided elsewhere (`jobs.search.script`); what is computed is a file for each unit. So a
killed search resumes from its files, and Tune's own state is thrown away.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.connection.session import Session
from jobs.search.rounds import Block, Rounds
from library.errors import StriateError, UsageError

# Read by Tune when it is imported or when a run begins. Files of results for each trial would only cost time.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Without this Tune prints a table of its settings on stdout.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Its own handler would end the process at Ctrl-C as if the search had succeeded.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
_MAX_FAILURES = 3
#: A trial that has waited so long for its actor gets any that is free: other jobs may hold the rest of the cluster.
_ACTOR_STARTS_S = 30.0


@dataclass(frozen=True)
class Placing:
    """Where units run.

    Attributes:
        workers: most trials at the same time.
        gpu: whether each takes a GPU.
        per_machine: most trials at the same time on one machine.
        grows: whether nodes that are added later take part.
    """

    workers: int
    gpu: bool
    per_machine: int
    grows: bool = False

    @classmethod
    def choose(cls, session: Session, workers: str, gpu: bool | None) -> Placing:
        """Reads `--workers` and `--gpu`: one worker for each GPU, else one for each CPU.

        Raises:
            UsageError: Ray has fewer GPUs than workers, or too few CPUs, and cannot grow.
        """
        on_gpu = session.gpus > 0 if gpu is None else gpu
        least = 1 if workers == "auto" else session.workers(workers)
        if on_gpu and least > session.gpus and not session.may_grow:
            if not session.gpus:
                raise UsageError("--gpu: Ray has no GPU; use --no-gpu, or a cluster with GPUs (--address)")
            raise UsageError(
                f"--workers {workers}: Ray has {session.gpus} GPUs, and each worker takes one; use at most that many, "
                "or --no-gpu"
            )
        most = session.gpus if on_gpu and workers == "auto" else session.workers(workers)
        # Each takes a CPU, also those with a GPU.
        per_machine = max(1, min(most, int(max(session.node_cpus, default=session.cpus))))
        return cls(max(1, most), on_gpu, per_machine, session.may_grow and workers == "auto")

    def most_now(self) -> int:
        """Returns the most trials that are handed out now; Ray must be connected if the cluster grows."""
        if not self.grows:
            return self.workers
        import ray

        # One waits: that asks an autoscaler for a node.
        return max(self.workers, int(ray.cluster_resources().get("GPU" if self.gpu else "CPU", 0))) + 1


def run_rounds(
    rounds: Rounds, compute: Callable[[], Callable[[Sequence[str]], None]], placing: Placing, tick: Callable[[], None]
) -> dict[str, int]:
    """Runs rounds of units until there are no more.

    Args:
        rounds: gives the next units, and gets their results.
        compute: makes what computes units, once in each worker; it takes their texts and writes their files.
        placing: where.
        tick: called often, to show progress.

    Returns:
        How many units were computed on each node, by Ray's id of it.

    Raises:
        StriateError: when a unit failed again and again.
    """
    if rounds.is_finished:  # everything was computed before
        return {}
    for name, value in (_ENVIRONMENT | {"TUNE_MAX_PENDING_TRIALS_PG": str(2 * placing.workers)}).items():
        os.environ.setdefault(name, value)
    from ray import tune

    searcher = round_searcher(rounds, tick, placing.most_now)
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    resources: dict[str, float] = {"cpu": 1, **({"gpu": 1} if placing.gpu else {})}
    with tempfile.TemporaryDirectory(prefix="striate-search-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trainable(), compute=compute), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=trial_scheduler(searcher.is_too_late),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        tuner.fit()
    if searcher.error is not None:
        raise searcher.error
    if not rounds.is_finished:
        raise StriateError("the search ended before its last round; run the same command again to resume")
    return dict(sorted(searcher.by_node.items()))


def attempt(make: Callable[[], Callable[[Sequence[str]], None]], units: Sequence[str]) -> dict[str, str]:
    """Computes a block, and returns what is wrong where that fails and would fail in another worker as well.

    Args:
        make: returns what writes the files of units.
        units: their texts, all of one candidate.

    Returns:
        `error` ends the search, and `failure` takes the candidate out; empty where all is well.

    Raises:
        Exception: any error of `make` but a StriateError; a lack of memory, an OSError, or an error of CUDA, which
            no later computation of this process survives. Tune tries again in another worker.
    """
    try:
        compute = make()
    except StriateError as failed:  # for example a plugin's import that is missing on this node
        return {"error": str(failed), "failure": ""}
    try:
        compute(units)
    except StriateError as failed:  # a store that fails was waited for
        return {"error": str(failed), "failure": ""}
    except Exception as failed:  # of the network, the recipe or a step
        if _may_pass(failed):
            raise
        return {"error": "", "failure": f"{type(failed).__name__}: {failed}"}
    return {"error": "", "failure": ""}


def _may_pass(error: Exception) -> bool:
    """Returns whether another worker or moment may be better."""
    import torch  # here, as `--help` would wait for it

    from library.training.batch_size import is_lack_of_memory

    # Libraries of CUDA, such as cuBLAS, raise a plain RuntimeError.
    is_of_cuda = isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )
    return isinstance(error, MemoryError | OSError) or is_of_cuda or is_lack_of_memory(error)


def _trainable() -> type[Any]:
    """Returns the class of a trial; made here, as Tune takes half a second to import."""
    import ray
    from ray import tune

    class UnitTrial(tune.Trainable):
        """Computes a block of units. An actor runs one trial after the other and keeps its pictures and imports."""

        def setup(self, config: dict[str, Any], **parameters: Any) -> None:
            self._config, self._make, self._compute = config, parameters["compute"], None

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._config = new_config
            return True

        def step(self) -> dict[str, Any]:
            result = attempt(self._computer, self._config["units"])
            return {"done": True, **result, "node": ray.get_runtime_context().get_node_id()}

        def _computer(self) -> Callable[[Sequence[str]], None]:
            # Not in `setup`: until that has ended Tune may give the block to another actor, and end this one.
            self._compute = self._compute or self._make()
            return self._compute

        # Tune pauses a trial by saving it when its actor takes the next one.
        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Mapping[str, Any] | None) -> None:
            """The files of units are the state."""

    return UnitTrial


def _take(rounds: Rounds) -> tuple[Block | None, StriateError | None]:
    """Returns the next block, or why there cannot be one: an error in Tune's calls would be lost in its log."""
    try:
        return rounds.take(), None
    except StriateError as error:
        return None, error


def _end(rounds: Rounds, block: Block, result: Mapping[str, Any] | None, lost: bool) -> StriateError | None:
    """Gives the rounds what became of a block.

    It has an error's text, its candidate failed, its worker was lost too often, it was stopped before it began, or it
    has written files.
    """
    try:
        if result and result.get("error"):
            return StriateError(result["error"])
        if result and result.get("failure"):
            rounds.give_up(block, result["failure"])
        elif result is None and not lost:
            rounds.withdraw(block)
        elif lost:
            rounds.give_up(block, f"a worker ended {_MAX_FAILURES + 1} times; its log is in Ray's folder")
        else:
            rounds.done(block)
    except StriateError as error:
        return error
    return None


def trial_scheduler(is_too_late: Callable[[str], bool], clock: Callable[[], float] = time.monotonic) -> Any:
    """Returns what chooses the trial that runs next.

    Args:
        is_too_late: whether the trial with this id must not begin any more.
        clock: returns seconds.
    """
    from ray.tune.schedulers import FIFOScheduler

    class NewTrialsFirst(FIFOScheduler):
        """Lets an actor that is free take a new trial. Tune's own choice is the first trial that does not run yet, so
        the actor that is being started for that trial would be ended: where blocks take less time than an actor's
        start, one actor would do all the work. A trial whose actor does not start gets a free one after a while."""

        def __init__(self) -> None:
            super().__init__()
            self._waiting_since: dict[str, float] = {}

        def __reduce__(self) -> tuple[type[object], tuple[()]]:
            # Tune stores its scheduler for a resume of its own, which is not used.
            return object, ()

        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            """Stops trials that are too late, and chooses the one that has waited longest, if that is too long; else
            none: Tune then starts all trials in their order, each in a free actor or in a new one."""
            now, waiting = clock(), list[Any]()
            for trial in tune_controller.get_trials():
                if trial.status == trial.PENDING and is_too_late(trial.trial_id):
                    # Tune prints a line about it on stdout, where --json writes.
                    with contextlib.redirect_stdout(io.StringIO()):
                        tune_controller.stop_trial(trial)
                elif trial.status == trial.PENDING:
                    waiting.append(trial)
            since = self._waiting_since
            self._waiting_since = {trial.trial_id: since.get(trial.trial_id, now) for trial in waiting}
            oldest = min(waiting, key=lambda trial: self._waiting_since[trial.trial_id], default=None)
            if oldest is None or now - self._waiting_since[oldest.trial_id] < _ACTOR_STARTS_S:
                return None
            return oldest

    return NewTrialsFirst()


def round_searcher(rounds: Rounds, tick: Callable[[], None], most_now: Callable[[], int]) -> Any:
    """Returns what Tune asks for trials.

    Args:
        rounds: gives the blocks, and gets their results.
        tick: called often, to show progress.
        most_now: returns the most blocks that are handed out at this moment.
    """
    from ray.tune.search import Searcher

    class RoundSearcher(Searcher):
        """Hands out the blocks of the current round; None makes Tune wait, as the next round depends on this one."""

        def __init__(self) -> None:
            super().__init__(metric="error", mode="min")
            self._given: dict[str, Block] = {}
            self.error: StriateError | None = None
            self.by_node = Counter[str]()

        def __reduce__(self) -> tuple[type[object], tuple[()]]:
            # Tune stores its searcher for a resume of its own, which is not used.
            return object, ()

        def suggest(self, trial_id: str) -> Any:
            tick()
            block = None
            if self.error is None and len(self._given) < most_now():
                block, self.error = _take(rounds)
            if block is not None:
                self._given[trial_id] = block
                return {"units": list(block.units)}
            if self._given:
                return None
            return Searcher.FINISHED if self.error is not None or rounds.is_finished else None

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            block = self._given.pop(trial_id)
            if result and "node" in result and not result.get("failure"):
                self.by_node[result["node"]] += len(block.units)
            self.error = _end(rounds, block, result, error) or self.error
            tick()

        def is_too_late(self, trial_id: str) -> bool:
            """Whether a trial that has not begun would end after the time of its round."""
            return trial_id in self._given and rounds.is_too_late(self._given[trial_id])

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a search resumes from the files of its units."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, as `save`."""

    return RoundSearcher()
