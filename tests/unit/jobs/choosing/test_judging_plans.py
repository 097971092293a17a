from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.choosing.ablate import plan_ablate
from jobs.choosing.audit import find_splits, plan_audit
from jobs.choosing.vectors import Judging, check_memory, remove_outdated
from jobs.cli.app import run
from library.dataset.destination import claim, finish
from library.dataset.manifest import FEATURES, Job, load_manifest
from library.dataset.totals import Totals
from library.errors import StriateError, UsageError
from tests.picture_examples import encoded, ingest, write_files


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judging")
    for name in ("val", "train"):
        files = {f"{label}/{name}.png": encoded("png") for label in ("cat", "dog")}
        ingest(write_files(folder / "source" / name, files), folder / "out" / name)
    return folder / "out"


def test_the_training_set_comes_first_and_a_dataset_is_a_split(splits: Path) -> None:
    assert list(find_splits(str(splits))) == ["train", "val"]
    assert list(find_splits(str(splits / "val"))) == ["val"]
    with pytest.raises(UsageError, match="neither a dataset nor a folder"):
        find_splits(str(splits.parent))


def test_a_plan_says_what_is_not_looked_at(splits: Path) -> None:
    assert "--bundle" in plan_audit(str(splits)).described()["not_looked_at"][0]
    assert plan_audit(str(splits), flips=True).described()["near"] == "4 bits, also mirrored"
    alone = plan_audit(str(splits / "train"), model="patches").described()
    assert alone["features"] == "patches of 32x32 pixels"
    (line,) = alone["not_looked_at"]
    assert line.startswith("leaks: there is one dataset")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bundle": "b", "model": "resnet18"}, "use only one"),
        ({"folds": 1, "model": "patches"}, "at least 2"),
        ({"folds": 7}, "no effect without --bundle"),
        ({"near": 13}, "--near 13: must be 0 to 12 bits"),
        ({"near": None, "flips": True}, "--flips has no effect with --no-near"),
        ({"full": "recipe.yaml"}, "--full needs --report"),
        ({"full": "recipe.yaml", "model": "patches", "report": "page"}, "no effect"),
    ],
)
def test_an_audit_that_contradicts_itself_is_refused(splits: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_audit(str(splits), **options)


def test_a_report_is_not_written_into_a_dataset(splits: Path) -> None:
    with pytest.raises(UsageError, match="is inside the dataset"):
        plan_audit(str(splits), report=str(splits / "train" / "page"))


@pytest.mark.parametrize(
    ("drop", "options", "message"),
    [
        ("grayscale", {}, "changes pictures"),
        ("not_blank", {"seeds": 4}, "at least 5"),
        ("not_blank", {"margin_points": 0}, "more than 0"),
        ("not_blank", {"recipe": "r.yaml"}, "--recipe needs --out"),
        ("not_blank", {"recipe": "r.yaml", "model": "patches"}, "use only one"),
    ],
)
def test_an_ablation_that_cannot_be_run_is_refused(
    splits: Path, drop: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_ablate(str(splits), drop, **options)


def test_an_ablation_needs_training_and_other_pictures(splits: Path) -> None:
    with pytest.raises(UsageError, match="needs the datasets train"):
        plan_ablate(str(splits / "train"), "not_blank")
    plan = plan_ablate(str(splits), "not_blank")
    assert plan.described()["val"] == str(splits / "val")
    assert plan.described()["trains"] == "a linear head on patches of 32x32 pixels"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["audit", "{}", "--gpu"], "--gpu/--no-gpu is for networks"),
        (["audit", "{}", "--model", "patches", "--no-gpu"], "--gpu/--no-gpu is for networks"),
        (["ablate", "{}", "--drop", "not_blank", "--gpu"], "--gpu/--no-gpu is for networks"),
        (["measure", "{}/train", "--columns", ""], "--columns names none"),
        (["evaluate", "bundle", "{}/val", "--flips"], "--flips has no effect without --without-leaks"),
    ],
)
def test_options_without_effect_are_refused(
    splits: Path, command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([argument.format(splits) for argument in command]) == 2
    assert message in capsys.readouterr().err


def test_vectors_that_do_not_fit_into_memory_are_refused_early() -> None:
    one_shard = pa.table({"vector": pa.array([[0.0] * 512] * 100, pa.list_(pa.float32(), 512))})
    check_memory("raw", [one_shard], Judging(10_000, 1000), 2**30)
    check_memory("raw", [one_shard], Judging(100_000, 0), 2**30)
    with pytest.raises(
        StriateError, match=r"all splits \(1,000,000 pictures\) need about 6\.\d GB, .* machine has 1\.1 GB"
    ):
        check_memory("raw", [one_shard], Judging(1_000_000, 0), 2**30)
    # The probabilities of many classes alone do not fit.
    with pytest.raises(StriateError, match=r"100,000 pictures\) need about 1\.8 GB"):
        check_memory("raw", [one_shard], Judging(100_000, 1000), 2**30)


def test_memory_is_counted_for_all_splits_together(splits: Path) -> None:
    manifests = [load_manifest(str(splits / name)) for name in ("train", "val")]
    assert Judging.of(manifests) == Judging(pictures=4, classes=2)


def test_features_of_earlier_pictures_are_removed(splits: Path) -> None:
    train = splits / "train"
    manifest = load_manifest(str(train))
    for name, digest in (("earlier", "0" * 64), ("current", manifest.digest), ("unfinished", "0" * 64)):
        folder, job = str(train / FEATURES / name), Job(kind="features", source=str(train), source_digest=digest)
        claim(folder, [job], overwrite=False)
        if name != "unfinished":
            finish(folder, [job], Totals())
    remove_outdated(str(train), manifest)
    assert {path.name for path in (train / FEATURES).iterdir()} == {"current", "unfinished"}
    assert load_manifest(str(train)) == manifest
