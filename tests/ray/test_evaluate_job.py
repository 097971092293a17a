"""Evaluation with real bundles on a real local Ray."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from jobs.cli.app import run
from jobs.evaluate import EvaluatePlan, plan_evaluate, run_evaluate
from jobs.ingest import ingest, plan_ingest
from library import storage
from library.bundle.bundle import Bundle
from library.dataset.lease import hold
from library.dataset.task import Progress, ShardTask
from library.errors import StriateError, UsageError
from library.evaluation.metrics import Evaluation
from library.evaluation.report.content import Content, summary
from library.evaluation.robustness import CORRUPTIONS
from library.evaluation.sums import EvaluateReport
from library.work.evaluate_shard import EvaluateJob
from tests.bundles import make_bundle
from tests.datasets import rows
from tests.picture_examples import encoded, write_files
from tests.picture_examples import ingest as ingest_alone
from tests.prometheus import exported_once, total
from tests.unit.library.bundle.test_multilabel_bundle import make_multilabel
from tests.waiting import until

Striate = Callable[..., Any]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "first", 1)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "second", 2)


@pytest.fixture(scope="module")
def pair(
    first: str, second: str, photos: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluatePlan, Content]:
    """Two bundles evaluated on the photos, with all options."""
    report = str(tmp_path_factory.mktemp("reports") / "pair")
    plan = plan_evaluate([first, second], photos, report=report, robustness_pictures=20)
    return plan, run_evaluate(plan, workers="2", gpu=False)


@pytest.fixture
def striate(capsys: pytest.CaptureFixture[str]) -> Striate:
    """Runs one command line in this process; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_an_evaluation_exports_its_counts_to_prometheus(pair: tuple[EvaluatePlan, Content]) -> None:
    counts = pair[1].subjects[0].counts
    became = [f"ray_striate_pictures_{name}_total" for name in ("out", "dropped", "rejected")]
    # Other tests may have evaluated the same photos.
    samples = exported_once(
        {"command": "evaluate", "dataset_id": storage.uri_id(pair[0].dataset)},
        lambda samples: sum(total(samples, name) for name in became) >= counts.rows_in,
    )
    assert total(samples, "ray_striate_pictures_out_total") >= counts.evaluated
    assert total(samples, "ray_striate_stage_seconds_total", stage="infer") > 0


def test_every_picture_is_judged_as_the_bundle_itself_predicts_it(
    pair: tuple[EvaluatePlan, Content], photos: str
) -> None:
    pictures = rows(photos).to_pylist()
    for uri, subject in zip(pair[0].bundles, pair[1].subjects, strict=True):
        predictions = Bundle.load(uri, "cpu").predict_many([row["image"]["bytes"] for row in pictures])
        predicted = {row["key"]: dict(one.classes) for row, one in zip(pictures, predictions, strict=True)}
        correct = [
            max(predicted[row["key"]], key=lambda name: predicted[row["key"]][name]) == row["label"] for row in pictures
        ]
        loss = -np.mean([np.log(predicted[row["key"]][row["label"]]) for row in pictures])
        assert isinstance(subject.evaluation, Evaluation)
        assert subject.evaluation.pictures == 86
        assert subject.evaluation.top1 == np.mean(correct)
        assert subject.evaluation.loss == pytest.approx(loss, rel=1e-5)
        for mistake in subject.mistakes:
            assert predicted[mistake.key][mistake.predicted] == pytest.approx(mistake.confidence, rel=1e-5)


def test_the_page_shows_the_mistakes_and_the_summary_holds_the_numbers(pair: tuple[EvaluatePlan, Content]) -> None:
    plan, content = pair
    assert plan.report is not None
    page = Path(plan.report, "index.html").read_text()
    keys = {mistake.key for subject in content.subjects for mistake in subject.mistakes}
    assert keys
    assert all(key in page for key in keys)
    assert page.count("data:image/jpeg;base64,") == sum(len(subject.mistakes) for subject in content.subjects)
    assert json.loads(Path(plan.report, "summary.json").read_text()) == json.loads(json.dumps(summary(content)))


def test_two_bundles_are_compared_and_robustness_has_a_limit_of_pictures(
    pair: tuple[EvaluatePlan, Content],
) -> None:
    content = pair[1]
    compared = content.comparison
    assert compared is not None
    assert compared.both + compared.only_first + compared.only_second + compared.neither == 86
    first, second = (subject.evaluation for subject in content.subjects)
    assert isinstance(first, Evaluation)
    assert isinstance(second, Evaluation)
    assert compared.difference == pytest.approx(second.top1 - first.top1)
    for subject in content.subjects:
        assert subject.robustness is not None
        assert 5 < subject.robustness.pictures <= 20
        assert len(subject.robustness.top1) == len(CORRUPTIONS)


def test_the_number_of_workers_changes_nothing_but_the_speed(
    pair: tuple[EvaluatePlan, Content], first: str, second: str, photos: str
) -> None:
    alone = run_evaluate(plan_evaluate([first, second], photos, robustness_pictures=20), workers="1", gpu=False)
    numbers, expected = summary(alone), summary(pair[1])
    assert numbers.pop("throughput")["workers"] == 1
    expected.pop("throughput")
    assert numbers == expected


def test_the_commands_say_what_was_found_and_account_for_every_picture(
    striate: Striate, photo_folder: Path, tmp_path: Path
) -> None:
    # Not verified: two damaged pictures have a valid header and are detected only here.
    data = str(tmp_path / "data")
    ingest(plan_ingest(str(photo_folder), data, shard_mb=0.5))
    bundle = make_bundle(tmp_path / "bundle", 3, ("china", "flower", "other"), "not_blank(min_std=0.08)")
    code, out, _ = striate("evaluate", bundle, data, "--workers", 1, "--report", tmp_path / "report")
    assert code == 0
    account = re.search(r"88 in = (\d+) evaluated \+ (\d+) \(.*blank \d+\) dropped \+ 2 \((.*)\) rejected", out)
    assert account is not None
    assert int(account[1]) + int(account[2]) == 86
    assert account[3] == "damaged 1, truncated 1"
    assert "labels unknown to the classifier: hopper 30" in out
    assert re.search(r"top-1 +\d+\.\d+% +95% interval", out)
    assert f"open {tmp_path}/report/index.html in a browser" in out


def test_json_is_one_document_and_s3_gives_the_same_as_the_disk(
    striate: Striate, pair: tuple[EvaluatePlan, Content], first: str, photos: str, bucket: str
) -> None:
    for file in storage.list_files(photos):
        storage.write_bytes(f"{bucket}/photos/{file.path}", Path(file.uri).read_bytes())
    code, out, _ = striate(
        "evaluate", first, f"{bucket}/photos", "--workers", 1, "--json", "--report", f"{bucket}/report"
    )
    document = json.loads(out)
    assert code == 0
    assert document["report"] == f"{bucket}/report/index.html"
    assert storage.exists(document["report"])
    expected = summary(pair[1])["bundles"][0]
    assert (document["top1"], document["loss"], document["per_class"]) == tuple(
        expected[name] for name in ("top1", "loss", "per_class")
    )
    assert sum(map(sum, document["confusion"])) == 86


def copy_of_manifest(dataset: str, folder: Path) -> str:
    folder.mkdir()
    shutil.copy(Path(dataset, "_manifest.json"), folder)
    return str(folder)


def test_what_cannot_be_evaluated_is_refused_before_anything_starts(
    first: str, photos: str, tmp_path: Path, striate: Striate
) -> None:
    other = make_bundle(tmp_path / "other", 0, ("cat", "dog"))
    with pytest.raises(UsageError, match=r"no picture of .+ has a class that .+ knows; the dataset has china"):
        plan_evaluate([other], photos)
    with pytest.raises(UsageError, match=r"is not a bundle"):
        plan_evaluate([photos], photos)
    with pytest.raises(UsageError, match=r"is not a dataset"):
        plan_evaluate([first], first)
    with pytest.raises(UsageError, match=r"is given twice"):
        plan_evaluate([first, first + "/"], photos)
    with pytest.raises(UsageError, match=r"is a dataset; name a folder of its own"):
        plan_evaluate([first], photos, report=copy_of_manifest(photos, tmp_path / "dataset"))
    with pytest.raises(UsageError, match=r"is inside the dataset"):
        plan_evaluate([first], photos, report=f"{photos}/report")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    with pytest.raises(UsageError, match=r"contains a page \(index.html\) of something else"):
        plan_evaluate([first], photos, report=str(tmp_path / "site"))
    assert striate("evaluate", photos)[0] == 2
    code, _, err = striate("evaluate", first, photos, "--robustness-pictures", 5)
    assert (code, "no effect without --robustness" in err) == (2, True)


def test_the_same_command_resumes_from_the_shards_that_are_judged(
    pair: tuple[EvaluatePlan, Content], first: str, second: str, photos: str, tmp_path: Path
) -> None:
    folder = tmp_path / "report"
    shutil.copytree(str(pair[0].report), folder)
    reports = sorted((folder / "_reports").iterdir())
    assert [path.stem for path in reports] == [shard.name.partition(".")[0] for shard in pair[0].manifest.shards]
    # The state after a kill: some shards evaluated, one report truncated, no page; and a report of a larger dataset.
    reports[0].unlink()
    reports[1].write_bytes(reports[1].read_bytes()[:-100])
    (folder / "_reports" / "_tmp-0123").write_bytes(b"half")
    (folder / "_reports" / "part-000099.json").write_bytes(reports[2].read_bytes())
    (folder / "index.html").unlink()
    plan = plan_evaluate([first, second], photos, report=str(folder), robustness_pictures=20)
    content = run_evaluate(plan, workers="1", gpu=False)
    assert content.throughput.shards_resumed == len(reports) - 2
    numbers, expected = summary(content), summary(pair[1])
    assert (numbers.pop("throughput"), expected.pop("throughput")) == (
        dataclasses.asdict(content.throughput),
        dataclasses.asdict(pair[1].throughput),
    )
    assert numbers == expected
    assert (folder / "index.html").read_text().count("<img") == Path(
        str(pair[0].report), "index.html"
    ).read_text().count("<img")
    assert sorted((folder / "_reports").iterdir()) == reports
    again = run_evaluate(plan, workers="1", gpu=False)
    assert (again.throughput.shards_resumed, again.throughput.pictures_per_s) == (len(reports), None)


@dataclass(frozen=True)
class WaitsBeforeTheLastShard(EvaluateJob):
    """Evaluates the last shard, whichever that is, only when a file appears; for one worker."""

    shards: int = 0
    begun: str = ""
    release: str = ""

    def run(self, task: ShardTask, progress: Progress) -> EvaluateReport:
        with open(self.begun, "a") as file:  # Ray Data gives the shards to a worker in any order
            file.write(f"{task.stem}\n")
        if len(Path(self.begun).read_text().split()) == self.shards:
            until(Path(self.release).exists)
        return super().run(task, progress)


def test_a_running_evaluation_exports_how_many_shards_are_done(
    pair: tuple[EvaluatePlan, Content], second: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, release = tmp_path / "report", tmp_path / "release"
    shutil.copytree(str(pair[0].report), folder)
    plan = plan_evaluate([second], photos, report=str(folder))
    shards = len(plan.manifest.shards)
    job = partial(WaitsBeforeTheLastShard, shards=shards, begun=str(tmp_path / "begun"), release=str(release))
    monkeypatch.setattr("jobs.evaluate.EvaluateJob", job)
    contents: list[Content] = []
    thread = Thread(target=lambda: contents.append(run_evaluate(plan, workers="1", gpu=False)))
    thread.start()
    try:
        exported = exported_once(
            {"command": "evaluate", "dataset_id": storage.uri_id(photos)},
            lambda samples: total(samples, "ray_striate_shards_done") == shards - 1,
        )
        assert total(exported, "ray_striate_shards_planned") == shards
    finally:
        release.touch()
        thread.join()
    assert contents[0].throughput.shards_resumed == 0, "the report was one of two bundles"


def test_a_report_that_another_command_writes_is_refused(first: str, photos: str, tmp_path: Path) -> None:
    plan = plan_evaluate([first], photos, report=str(tmp_path / "report"))
    with hold(str(tmp_path / "report"), tidy=lambda _: None), pytest.raises(UsageError, match="is being written by"):
        run_evaluate(plan)


def test_a_damaged_bundle_is_named_instead_of_a_worker_dying_of_it(photos: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", 0)
    plan = plan_evaluate([bundle], photos)
    weights = tmp_path / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(StriateError, match=r"model\.safetensors is damaged"):
        run_evaluate(plan, workers="1", gpu=False)


def test_a_classifier_of_several_labels_gets_its_own_metrics_and_page(striate: Striate, tmp_path: Path) -> None:
    bundle = make_multilabel(tmp_path / "tagger")
    tags = {f"{number}.png": [["cat"], ["dog", "cat"], [], ["eel"]][number % 4] for number in range(12)}
    lines = "\n".join(json.dumps({"file_name": name, "tags": names}) for name, names in tags.items())
    files = {name: encoded("png", 30 + number, 40) for number, name in enumerate(tags)}
    source = write_files(tmp_path / "raw", files | {"metadata.jsonl": lines.encode()})
    ingest_alone(source, tmp_path / "data", shard_bytes=5000)

    report = tmp_path / "report"
    code, out, _ = striate(
        "evaluate", bundle, tmp_path / "data", "--labels", "tags", "--report", report, "--workers", "2", "--json"
    )
    numbers = json.loads(out)
    assert (code, numbers["counts"]["evaluated"], numbers["multilabel"]) == (0, 12, True)
    loaded = Bundle.load(bundle, "cpu")
    probabilities = loaded.probabilities([loaded.prepare(data) for data in files.values()])
    truth = np.array([[name in names for name in loaded.classes] for names in tags.values()])
    expected = metrics.average_precision_score(truth, probabilities)
    assert numbers["mean_ap"] == pytest.approx(expected, abs=1e-6)
    assert "mean average precision" in (report / "index.html").read_text()
    assert json.loads((report / "summary.json").read_text())["mean_ap"] == numbers["mean_ap"]

    code, out, _ = striate("evaluate", bundle, tmp_path / "data", "--labels", "tags", "--report", report)
    assert code == 0
    assert f"{numbers['mean_ap']:.2%}" in out
