"""Runs a planned search: decodes the pictures, runs the rounds on Ray Tune, and writes answer, page and recipe."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.connection.session import connect
from cluster.shared_paths import check_shared
from jobs import output
from jobs.progress.display import duration
from jobs.search.earlier_looks import EarlierLooks, described_in, write_record
from jobs.search.placing import Placing, run_rounds
from jobs.search.prefix_files import remove_prefixes
from jobs.search.preparing import StoredInputs
from jobs.search.rounds import Rounds, stopwatch
from jobs.search.script import Findings, RecipeLimit, search
from jobs.search.search_plan import (
    ANSWER,
    FEWEST_IN_HALF,
    RECIPE,
    RECORD,
    SearchPlan,
    compares_heads,
    versions,
)
from jobs.search.unit_worker import (
    ComputerFactory,
    FileStore,
    UnitTask,
    first_confirmation_seed,
    with_candidate,
)
from jobs.train.plan import model_inputs
from library import storage
from library.choosing.filter_search.answer import Answer
from library.choosing.filter_search.search_page import (
    SHOWN_PICTURES,
    SearchReport,
    draw_answer,
    draw_filtered,
    render_search,
)
from library.choosing.filter_search.space import IDENTITY
from library.choosing.filter_search.trials import Unit, halves
from library.dataset.lease import hold
from library.errors import StriateError, UsageError
from library.evaluation.report.templates import PAGE
from library.pipeline import Pipeline
from library.randomness import seeds_of
from library.recipe import Recipe
from library.steps import plugins
from library.training.in_memory import PackedPictures
from library.training.rows import rejected_text

PICTURE = "answer.png"
#: Pictures of cheap trainings, and of their screening; with many classes some of each.
PROXY_PICTURES, _PER_CLASS = 2_000, 20
#: Where features of a large backbone are computed for each candidate.
_FEATURE_PICTURES = 600
_LINE_EVERY_S = 10.0
#: Of filtered pictures that all workers of a machine keep in memory together, and that one worker does at most.
_MACHINE_CACHE_BYTES, _WORKER_CACHE_BYTES = 2 * 2**30, 640 * 2**20


@dataclass(frozen=True)
class SearchResult:
    """A search that has ended.

    Attributes:
        report: what it found.
        out: URI of its folder.
        computed: units that this run has computed; the others had files.
        seconds: of this run.
        by_node: units that each node has computed in this run, by Ray's id of it.
        train_command: trains the answer's recipe, for a person to complete.
    """

    report: SearchReport
    out: str
    computed: int
    seconds: float
    by_node: Mapping[str, int]
    train_command: str


def run_search(
    plan: SearchPlan, *, workers: str = "auto", gpu: bool | None = None, address: str | None = None
) -> SearchResult:
    """Runs a search; what an earlier or killed run has computed in the same folder is not repeated.

    Args:
        plan: from `plan_search`.
        workers: trials at the same time; `auto` is one per CPU, or per GPU.
        gpu: whether each trial uses a GPU; None to use them if there are any.
        address: address of the Ray cluster.

    Raises:
        UsageError: another search is writing to the folder, too few pictures can be used, or nodes of the cluster do
            not see the same files at a local path.
        StriateError: the recipe cannot be trained, or not within the budget, or workers are lost again and again.
    """
    elapsed = stopwatch()
    with hold(plan.out, tidy=lambda out: None), connect(address) as session:
        placing = Placing.choose(session, workers, gpu)
        check_shared(reads=_paths_read_by_workers(plan), writes=[plan.out])
        plan = replace(plan, device="cuda" if placing.gpu else "cpu")
        looks = begin(plan)
        import ray

        from jobs.train.data import decode_all

        rows = {"train": plan.train, "val": plan.val, **({} if plan.test is None else {"test": plan.test})}
        pictures: list[PackedPictures] = []
        for role, each in rows.items():
            inputs = StoredInputs.of(
                model_inputs(plan.recipe), augmented=role == "train" and plan.recipe.augment is not None
            )
            pictures.append(decode_all(each, inputs, session, fitted=False, on_gpus=False))
            if rejected := pictures[-1].rejected:
                total, reasons = output.counted(rejected.total(), "picture"), rejected_text(rejected)
                output.stderr.print(f"{each.dataset}: {total} cannot be used: {reasons}", markup=False)
        pictures[0].check_classes(plan.train.dataset, plan.train.classes)
        settings = plan.settings(placing.workers, first_confirmation_seed(plan.recipe))
        task = _task(plan, pictures, placing, session.cpus, RecipeLimit.of(settings))
        factory = ComputerFactory(task, tuple(ray.put(packed) for packed in pictures))
        found = Findings()
        rounds = Rounds(search(settings, elapsed, found, looks), FileStore(plan.out), placing.workers, elapsed)
        by_node = run_rounds(rounds, factory, placing, _Progress(plan, rounds, found, elapsed))
        report = _report(plan, rounds, found, looks, pictures, task)
        if len(by_node) > 1:
            named = ", ".join(f"{units:,} on {node[:8]}" for node, units in by_node.items())
            report = replace(report, facts={**report.facts, "trainings by node, this run": named})
        command = write_answer(plan, report, pictures[0])
        if not report.resumes:
            with contextlib.suppress(StriateError):  # they only save time, and the answer is written
                remove_prefixes(plan.out)
    return SearchResult(report, plan.out, rounds.computed, elapsed(), by_node, command)


def _paths_read_by_workers(plan: SearchPlan) -> list[str]:
    weights = plan.recipe.located().weights
    weights_paths = [] if weights is None or weights == "pretrained" else [weights]
    return [*(rows.dataset for rows in (plan.train, plan.val, plan.test) if rows is not None), *weights_paths]


def begin(plan: SearchPlan) -> EarlierLooks:
    """Writes what is searched, and removes the answer of another search in the folder; returns its looks at pictures.

    Args:
        plan: of this search.

    Raises:
        UsageError: its test pictures have answered another search.
    """
    looks, record = plan.looks(), storage.join(plan.out, RECORD)
    looks.check_test("" if plan.test is None else plan.test.dataset, plan.out)
    described = {"context": plan.context, "question": plan.question, **plan.described()}
    # Compared as they are written, where a tuple is a list.
    if described_in(record) != json.loads(json.dumps(described)):
        storage.remove(storage.join(plan.out, name) for name in (ANSWER, PAGE, PICTURE, RECIPE))
    looks.save = lambda: storage.patiently(lambda: write_record(record, described, looks.looks))
    looks.save()
    return looks


def _task(
    plan: SearchPlan, pictures: list[PackedPictures], placing: Placing, cpus: int, limit: RecipeLimit
) -> UnitTask:
    """Chooses the pictures of cheap trainings and divides the validation pictures, by their keys alone."""
    train, val = pictures[0], pictures[1]
    screening = screening_half(plan.val.dataset, val)
    most = max(
        _FEATURE_PICTURES if compares_heads(plan.recipe) else PROXY_PICTURES, _PER_CLASS * len(plan.train.classes)
    )
    return UnitTask(
        recipe=plan.recipe.located().model_dump_json(),
        classes=plan.train.classes,
        out=plan.out,
        proxy_train=_chosen(train, np.arange(len(train)), most),
        screening=_chosen(val, np.flatnonzero(screening), most),
        confirmation=np.flatnonzero(~screening),
        threads=max(1, cpus // placing.workers) if placing.gpu else 1,
        gpu=placing.gpu,
        used_plugins=plan.used_plugins,
        context=plan.context,
        cache_bytes=min(_WORKER_CACHE_BYTES, _MACHINE_CACHE_BYTES // placing.per_machine),
        limit=limit,
        test_context=plan.test_context,
    )


def screening_half(dataset: str, val: PackedPictures) -> NDArray[np.bool_]:
    """Returns which validation pictures choose the finalists; the others confirm them.

    Args:
        dataset: URI of the validation set, for the error.
        val: its pictures.

    Raises:
        UsageError: one half is too small to compare anything on.
    """
    screening = halves([str(key) for key in val.keys])
    choosing, confirming = int(screening.sum()), int((~screening).sum())
    if min(choosing, confirming) < FEWEST_IN_HALF:
        raise UsageError(
            f"{dataset} has too few pictures that can be used: by their keys {choosing} would choose the finalists and "
            f"{confirming} confirm them, and each half needs at least {FEWEST_IN_HALF}; add pictures"
        )
    return screening


def _chosen(pictures: PackedPictures, rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Returns at most so many of the rows, in the order of a hash of their keys."""
    draws = seeds_of(0, 0, [f"search/{pictures.keys[row]}" for row in rows.tolist()])
    order = sorted(range(len(rows)), key=lambda number: draws[number])
    return rows[np.sort(np.array(order[:most], np.int64))]


class _Progress:
    """Prints what is tested, how many candidates are left, the best so far and the time left: a line every 10 s."""

    def __init__(self, plan: SearchPlan, rounds: Rounds, found: Findings, elapsed: Callable[[], float]) -> None:
        self._plan, self._rounds, self._found, self._elapsed = plan, rounds, found, elapsed
        self._title, self._printed_s = "", -_LINE_EVERY_S

    def __call__(self) -> None:
        current, now = self._rounds.current, self._elapsed()
        if current is None or (current.title == self._title and now - self._printed_s < _LINE_EVERY_S):
            return
        self._title, self._printed_s = current.title, now
        testing = ", ".join(self._rounds.at_work[:2])
        parts = [
            f"search: {current.title}",
            f"{self._rounds.waiting:,} training{'s' * (self._rounds.waiting != 1)} left",
            *([f"testing {testing}"] if testing else []),
            *([f"best so far {self._found.best}"] if self._found.best else []),
            f"{duration(max(0.0, self._plan.budget_s - now))} of the budget left",
        ]
        output.stderr.print("; ".join(parts), markup=False, soft_wrap=True)


def _report(
    plan: SearchPlan,
    rounds: Rounds,
    found: Findings,
    looks: EarlierLooks,
    pictures: list[PackedPictures],
    task: UnitTask,
) -> SearchReport:
    answer = found.answer
    if answer is None:
        best = f"; best so far in the race: {found.best}" if found.best else ""
        answer = Answer("undecided", f"unfinished: no finalist has been confirmed{best}", None, ())
    seed = first_confirmation_seed(plan.recipe)
    store = FileStore(plan.out)
    robustness = {
        one.name: dict(store.robustness(Unit(one, seed, "recipe", plan.context)))
        for one in (IDENTITY, *found.finalists)
    }
    facts = {
        "train": f"{plan.train.dataset}, {len(pictures[0]):,} pictures",
        "val": f"{plan.val.dataset}, {len(task.screening):,} pictures screen and {len(task.confirmation):,} confirm",
        **({} if plan.test is None else {"test": f"{plan.test.dataset}, {len(pictures[2]):,} pictures"}),
        **left_out(pictures),
        "recipe": f"{plan.recipe_name}: {plan.recipe.model}",
        "cheap trainings": _proxy_text(plan, task),
        "paired seeds": f"{found.confirmed_seeds}",
        "margin": f"{100 * plan.margin:g} points",
        "cost weight": f"{plan.cost_weight:g} points for a millisecond a picture",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "device": plan.device,
    }
    return SearchReport(
        answer,
        [*found.singles, *found.sequences],
        found.test,
        {name: accuracies for name, accuracies in robustness.items() if accuracies},
        facts,
        rounds.trainings,
        rounds.seconds,
        "; ".join(found.unfinished) or None,
        {"confirmation": looks.count("confirmation"), "test": looks.count("test")},
        found.resumes,
    )


def left_out(pictures: Sequence[PackedPictures]) -> Mapping[str, str]:
    """Returns a fact about the pictures that cannot be used, by role and reason; empty where all can.

    Args:
        pictures: of the training, the validation and, where there is one, the test set.
    """
    roles = zip(("train", "val", "test"), pictures, strict=False)
    texts = [
        f"{each.rejected.total():,} of {role} ({rejected_text(each.rejected)})" for role, each in roles if each.rejected
    ]
    return {"cannot be used": "; ".join(texts)} if texts else {}


def _proxy_text(plan: SearchPlan, task: UnitTask) -> str:
    what = f"a linear head on features of {plan.recipe.model}" if compares_heads(plan.recipe) else "a small network"
    return f"{what}, {len(task.proxy_train):,} pictures"


def write_answer(plan: SearchPlan, report: SearchReport, train: PackedPictures) -> str:
    """Writes the recipe, the picture, the page and the answer; the answer last, as its presence is the end.

    Returns:
        The command that trains the recipe.
    """
    winner = report.answer.winner or IDENTITY
    recipe = with_candidate(plan.recipe, winner, train[0], plan.recipe.seed)
    command = _train_command(storage.join(plan.out, RECIPE), recipe)
    what = report.answer.sentence if report.answer.winner else f"The recipe as it was. {report.answer.sentence}"
    lines = [
        "# Written by `striate search`.",
        *(f"# {line}" for line in what.splitlines()),
        "#",
        f"#   {command}",
        recipe.dump(),
    ]
    storage.write_bytes(storage.join(plan.out, RECIPE), "\n".join(lines).encode())
    documents: dict[str, Any] = {PICTURE: draw_answer(report)} if report.answer.gains else {}
    if not documents:  # of an earlier run
        storage.remove([storage.join(plan.out, PICTURE)])
    shown = [train[number] for number in range(min(SHOWN_PICTURES, len(train)))]
    finalists = [gain.candidate for gain in report.answer.gains]
    sheet = draw_filtered(shown, finalists) if any(one.filters for one in finalists) else None
    documents[PAGE] = render_search(report, sheet).encode()
    documents[ANSWER] = (json.dumps(report.to_json(), indent=1) + "\n").encode()
    for name, data in documents.items():
        storage.write_bytes(storage.join(plan.out, name), data)
    return command


def _train_command(uri: str, recipe: Recipe) -> str:
    """Returns `striate train` for a recipe with the plugins of its steps; of a file only the name is known."""
    augment = Pipeline.parse(recipe.augment).steps if recipe.augment else ()
    used = plugins.used_by((*model_inputs(recipe).steps.steps, *augment))
    names = (each.name if each.module == each.name else f"{each.name}.py" for each in used)
    options = (part for name in names for part in ("--plugin", name))
    return shlex.join(["striate", "train", uri, "--out", "MODEL", *options])
