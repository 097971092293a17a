"""The augment job on a real local Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.augment import augment_dataset, plan_augment
from jobs.cli.app import run
from jobs.shards.dataset_job import ShardPlan, run_tasks
from jobs.shards.pool_size import WorkerPool
from library.dataset.destination import claim
from library.dataset.manifest import load_manifest
from library.errors import UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.work.augment_shard import AugmentJob
from tests.datasets import content, rows

STEPS = "rotate(15) | flip(p=0.5) | zoom(0.2) | sometimes(0.3, gaussian_blur(sigma=1))"


def plan(photos: str, destination: Path) -> ShardPlan[AugmentJob]:
    return plan_augment(photos, str(destination), STEPS, copies=2, seed=3, encode="png")


@pytest.fixture(scope="module")
def one(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two copies of each photo, written by one worker."""
    destination = tmp_path_factory.mktemp("augmented") / "one"
    augment_dataset(plan(photos, destination), workers="1")
    return destination


def test_each_copy_has_the_librarys_pixels_and_its_pictures_label(photos: str, one: Path) -> None:
    manifest = load_manifest(str(one))
    assert (manifest.tally.rows_in, manifest.rows) == (172, 172)
    assert manifest.tally.balanced
    assert manifest.tally.classes == {name: 2 * count for name, count in load_manifest(photos).tally.classes.items()}
    assert [shard.name for shard in manifest.shards] == [shard.name for shard in load_manifest(photos).shards]
    before = {row["key"]: row for row in rows(photos).to_pylist()}
    after = rows(one).to_pylist()
    assert {row["key"] for row in after} == {f"{key}#{number}" for key in before for number in (1, 2)}
    augmenter = Augmenter(Pipeline.parse(STEPS), 3)
    for row in after[::20]:
        key, _, number = row["key"].rpartition("#")
        expected = augmenter.apply(codec.decode(before[key]["image"]["bytes"]), int(number), key)
        np.testing.assert_array_equal(codec.decode(row["image"]["bytes"]), expected)
        assert row["label"] == before[key]["label"]


def test_an_interrupted_job_resumed_by_two_workers_writes_equal_bytes(photos: str, one: Path, tmp_path: Path) -> None:
    interrupted = plan(photos, tmp_path / "more")
    claim(interrupted.destination, interrupted.jobs, overwrite=False)
    run_tasks("augment", interrupted.work, interrupted.tasks[:2], WorkerPool(1))
    manifest = augment_dataset(interrupted, workers="2")
    assert manifest.run["shards_resumed"] == 2 < len(manifest.shards)
    assert content(tmp_path / "more") == content(one)
    with pytest.raises(UsageError, match="holds the output of another job"):
        plan_augment(photos, interrupted.destination, STEPS, copies=2, seed=1, encode="png")


def test_the_command_says_how_many_copies_it_made(
    photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["augment", photos, str(tmp_path / "more"), "--steps", "flip | rotate(10)", "--copies", "1"]
    assert run([*command, "--keep-original", "--workers", "2"]) == 0
    assert "86 pictures x 2 = 172 in = 172 out + 0 dropped + 0 rejected" in capsys.readouterr().out
    assert run([*command[:-1], "2"]) == 2
    assert "holds the output of another job" in capsys.readouterr().err
