"""The filter search on a real local Ray: killed and resumed it gives the same answer; the winner's recipe trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli.app import run
from jobs.search import placing, running
from jobs.search.placing import Placing, run_rounds
from jobs.search.rounds import Round, Rounds, Script
from jobs.search.running import PICTURE, run_search
from jobs.search.search_plan import ANSWER, RECIPE, RECORD, SearchPlan, plan_search
from jobs.search.unit_worker import UNITS, ComputerFactory, FileStore
from library import storage
from library.bundle.bundle import Bundle
from library.choosing.filter_search.space import Candidate
from library.choosing.filter_search.trials import Unit, UnitResult
from library.errors import StriateError, UsageError
from library.imaging import codec
from library.recipe import Recipe
from tests.conftest import S3Server
from tests.datasets import write_search
from tests.picture_examples import ingest, write_files

SPACE = """
filters: ["median_blur(size=3)", invert]
places: [always]
placebos: 1
"""
RECIPE_TEXT = """
data: {train: x}
model: lenet5
optimizer: {name: adamw, lr: 0.003}
batch_size: 32
epochs: 2
"""


def digit(kind: int, seed: int) -> bytes:
    """A bright half, the left one or the right one, below salt-and-pepper noise."""
    rng = np.random.default_rng(seed)
    pixels = np.full((28, 28, 1), 120, np.uint8)
    pixels[:, 14 * kind : 14 * kind + 14] += 10
    noise = rng.random(pixels.shape)
    pixels[noise < 0.15], pixels[noise > 0.85] = 0, 255
    return codec.encode(pixels, codec.Encoding("png"))[0]


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    for number, name in enumerate(("train", "val", "test")):
        files = {f"{row % 2}/{row}.png": digit(row % 2, 1000 * number + row) for row in range(80)}
        ingest(write_files(folder / "source" / name, files), folder / name)
    (folder / "space.yaml").write_text(SPACE)
    (folder / "recipe.yaml").write_text(RECIPE_TEXT)
    return folder


def planned(splits: Path | str, out: Path | str, budget: str = "1h") -> SearchPlan:
    train, val, test, space, recipe = (
        f"{splits}/{name}" for name in ("train", "val", "test", "space.yaml", "recipe.yaml")
    )
    return plan_search(train, val, test=test, out=str(out), budget=budget, space=space, recipe=recipe)


def answer_of(out: Path) -> dict[str, Any]:
    """The answer without what a clock measures."""
    document = json.loads((out / ANSWER).read_text())
    for gain in (*document["finalists"], document["test"]):
        gain["filter_ms"] = 0
    return {**document, "seconds": 0}


@dataclass(frozen=True)
class DyingFactory(ComputerFactory):
    """A worker that ends after some units: once as if its machine was lost, then with an error that stays."""

    marks: str = ""

    def __call__(self) -> Any:
        computer, marks = super().__call__(), Path(self.marks)

        def compute(units: Sequence[str]) -> None:
            computer(units)
            (marks / f"{len(list(marks.iterdir())):03d}").touch()
            done = len(list(marks.iterdir()))
            if done == 4:
                import os

                os._exit(1)
            if done > 8:
                raise StriateError("the machine is taken away")

        return compute


def test_a_search_in_a_bucket_answers_and_computes_nothing_twice(
    splits: Path, bucket: str, s3_server: S3Server
) -> None:
    for path in splits.rglob("*"):
        if path.is_file() and "source" not in path.parts:
            storage.write_bytes(f"{bucket}/{path.relative_to(splits)}", path.read_bytes())
    out, stored = f"{bucket}/deep/out", s3_server.root / bucket.removeprefix("s3://") / "deep/out"
    whole = run_search(planned(bucket, out), workers="2", gpu=False)
    assert whole.report.unfinished is None
    assert whole.report.test is not None
    # Of each confirmed training also what it answers for the test pictures, but for those of the placebo.
    units = list((stored / UNITS).glob("[!r]*.json"))
    assert whole.report.trainings + 20 <= len(units)
    assert {path.name for path in stored.iterdir()} == {UNITS, ANSWER, RECIPE, RECORD, PICTURE, "index.html"}
    page = (stored / "index.html").read_text()
    assert whole.report.answer.sentence.split(":")[0].replace('"', "&#34;") in page
    recipe = Recipe.load(f"{out}/{RECIPE}")
    assert (recipe.data.train, recipe.data.val) == (f"{bucket}/train", f"{bucket}/val")

    again = run_search(planned(bucket, out), workers="1", gpu=False)
    assert (again.computed, again.by_node) == (0, {})
    assert again.report.to_json() == whole.report.to_json()


@dataclass(frozen=True)
class RecordingFactory:
    """A worker that writes a result for each unit, and the order in which units come."""

    out: str

    def __call__(self) -> Any:
        def compute(units: Sequence[str]) -> None:
            for text in units:
                unit = Unit.from_json(json.loads(text))
                with (Path(self.out) / "order").open("a") as file:
                    file.write(f"{unit.seed}\n")
                FileStore(self.out).write(UnitResult(unit, np.ones(2, np.bool_), 1.0, 0.0))

        return compute


@pytest.mark.faults
def test_where_other_jobs_hold_the_cluster_no_training_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util import placement_group, remove_placement_group

    def script() -> Script:
        yield Round("all", [Unit(Candidate("invert"), seed, "proxy", "") for seed in range(12)], per_block=1)

    monkeypatch.setattr(placing, "_ACTOR_STARTS_S", 0.0)
    held = placement_group([{"CPU": 1}])  # of two
    assert held.wait(60)
    rounds = Rounds(script(), FileStore(str(tmp_path)), 3)
    by_node = run_rounds(rounds, RecordingFactory(str(tmp_path)), Placing(3, gpu=False, per_machine=3), lambda: None)
    remove_placement_group(held)
    assert sum(by_node.values()) == 12
    order = [int(line) for line in (tmp_path / "order").read_text().split()]
    # Three wait at a time, so each is begun before the third one after it.
    assert [place - seed for place, seed in enumerate(order) if place - seed > 2] == []


@pytest.mark.faults
def test_a_search_that_loses_workers_resumes_to_the_same_answer(
    splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "marks").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(running, "ComputerFactory", lambda *parts: DyingFactory(*parts, marks=str(tmp_path / "marks")))
        with pytest.raises(StriateError, match="taken away"):
            run_search(planned(splits, tmp_path / "killed"), workers="2", gpu=False)
    kept = {path.name for path in (tmp_path / "killed" / UNITS).glob("[!r]*.json")}
    assert kept
    resumed = run_search(planned(splits, tmp_path / "killed"), workers="2", gpu=False)
    assert resumed.computed < resumed.report.trainings
    assert resumed.report.unfinished is None
    run_search(planned(splits, tmp_path / "whole"), workers="1", gpu=False)
    assert answer_of(tmp_path / "killed") == answer_of(tmp_path / "whole")


@pytest.mark.faults
@pytest.mark.parametrize(("place", "channels"), [("always", 1), ("channels", 2)])
def test_a_winners_recipe_trains_a_bundle_that_keeps_the_gain(place: str, channels: int, tmp_path: Path) -> None:
    out, model, test = str(tmp_path / "out"), str(tmp_path / "model"), str(tmp_path / "test")
    assert run(["search", *write_search(tmp_path, place), "--out", out]) == 0
    answer = json.loads((tmp_path / "out" / ANSWER).read_text())
    assert (answer["outcome"], answer["unfinished"]) == ("helps", None)
    assert answer["winner"]["place"] == place
    assert run(["train", f"{out}/{RECIPE}", "--out", model, "--no-gpu"]) == 0
    bundle = Bundle.load(model, device="cpu")
    assert "median_blur(size=3)" in bundle.record.steps
    assert bundle.record.channels == channels
    assert run(["evaluate", model, test, "--report", str(tmp_path / "report"), "--no-gpu"]) == 0
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    (winner,) = [gain for gain in answer["finalists"] if gain["candidate"] == answer["winner"]]
    assert summary["top1"] > winner["identity"]


def test_a_folder_with_other_files_is_refused(splits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="contains other files"):
        planned(splits, tmp_path)
    with pytest.raises(UsageError, match="contain one another"):
        planned(splits, splits / "train" / "search")
