"""The augment job on a real local Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.augment import augment_dataset, plan_augment
from jobs.cli import run
from jobs.places import Places
from jobs.shard_plan import run_tasks
from library import codec
from library.augmentation import Augmenter
from library.destination import claim
from library.errors import UsageError
from library.manifest import load_manifest
from library.pipeline import Pipeline
from tests.datasets import content, rows

STEPS = "rotate(15) | flip(p=0.5) | zoom(0.2) | sometimes(0.3, gaussian_blur(sigma=1))"


def test_the_bytes_are_the_same_for_one_worker_and_for_two_and_the_pixels_are_those_of_the_library(
    photos: str, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    made = augment_dataset(plan_augment(photos, str(one), STEPS, copies=2, seed=3, encode="png"), workers="1")
    augment_dataset(plan_augment(photos, str(two), STEPS, copies=2, seed=3, encode="png"), workers="2")
    assert content(one) == content(two)
    assert (made.tally.rows_in, made.rows) == (172, 172)
    assert made.tally.balanced
    assert made.tally.classes == {name: 2 * count for name, count in load_manifest(photos).tally.classes.items()}
    assert [shard.name for shard in made.shards] == [shard.name for shard in load_manifest(photos).shards]
    before = {row["key"]: row for row in rows(photos).to_pylist()}
    after = rows(one).to_pylist()
    assert {row["key"] for row in after} == {f"{key}#{number}" for key in before for number in (1, 2)}
    augmenter = Augmenter(Pipeline.parse(STEPS), 3)
    for row in after[::20]:
        key, _, number = row["key"].rpartition("#")
        wanted = augmenter.apply(codec.decode(before[key]["image"]["bytes"]), int(number), key)
        np.testing.assert_array_equal(codec.decode(row["image"]["bytes"]), wanted)
        assert row["label"] == before[key]["label"]


def test_a_job_that_was_cut_off_goes_on_and_another_seed_is_another_job(photos: str, tmp_path: Path) -> None:
    destination = str(tmp_path / "more")
    plan = plan_augment(photos, destination, STEPS, copies=2)
    claim(destination, plan.jobs, overwrite=False)
    run_tasks("augment", plan.work, plan.tasks[:2], Places(2))
    made = augment_dataset(plan)
    assert made.run["shards_resumed"] == 2
    whole = content(destination)
    (tmp_path / "more" / "part-000001.parquet").unlink()
    assert augment_dataset(plan).run["shards_resumed"] == len(made.shards) - 1
    assert content(destination) == whole
    with pytest.raises(UsageError, match="holds the output of another job"):
        plan_augment(photos, destination, STEPS, copies=2, seed=1)


def test_the_command_says_how_many_copies_it_made(
    photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["augment", photos, str(tmp_path / "more"), "--steps", "flip | rotate(10)", "--copies", "1"]
    assert run([*command, "--keep-original", "--workers", "2"]) == 0
    assert "172 in = 172 out + 0 dropped + 0 rejected" in capsys.readouterr().out
    assert run([*command[:-1], "2"]) == 2
    assert "holds the output of another job" in capsys.readouterr().err
