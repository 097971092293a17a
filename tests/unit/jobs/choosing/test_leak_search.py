"""Where `striate evaluate --without-leaks` looks for leaks, before Ray starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.choosing.leak_search import plan_leak_search
from library.bundle.description import BundleRecord, load_record
from library.errors import UsageError
from tests.bundles import make_bundle
from tests.picture_examples import encoded, ingest, write_files


@pytest.fixture
def train(tmp_path: Path) -> str:
    ingest(write_files(tmp_path / "raw", {"cat/a.png": encoded("png")}), tmp_path / "train")
    return str(tmp_path / "train")


def record(tmp_path: Path, **provenance: Any) -> BundleRecord:
    made = load_record(make_bundle(tmp_path / "bundle"))
    return made.model_copy(update={"provenance": provenance})


def test_auto_is_the_training_set_that_the_bundle_names(tmp_path: Path, train: str) -> None:
    named = plan_leak_search([train], [], "/test", 4)
    digest = named.manifests[0].digest
    known = record(tmp_path, datasets={"train": train}, dataset_digests={"train": digest})
    assert plan_leak_search(["auto"], [("/bundle", known)], "/test", 4) == named
    assert plan_leak_search(["auto", train], [("/bundle", known), ("/other", known)], "/test", 4) == named
    assert named.rule.near == 4


def test_a_bundle_must_name_a_training_set_that_is_as_it_was(tmp_path: Path, train: str) -> None:
    with pytest.raises(UsageError, match="/bundle does not say what it was trained on; name the dataset"):
        plan_leak_search(["auto"], [("/bundle", record(tmp_path))], "/test", 4)
    changed = record(tmp_path, datasets={"train": train}, dataset_digests={"train": "0" * 64})
    with pytest.raises(UsageError, match=f"name it: --without-leaks {train}"):
        plan_leak_search(["auto"], [("/bundle", changed)], "/test", 4)


def test_a_wrong_request_is_told(tmp_path: Path, train: str) -> None:
    with pytest.raises(UsageError, match="this is the dataset that is evaluated; name the training set"):
        plan_leak_search([train], [], train, 4)
    with pytest.raises(UsageError, match="there is nothing at"):
        plan_leak_search([str(tmp_path / "none")], [], "/test", 4)
    with pytest.raises(UsageError, match="--near 40: must be 0 to 12 bits"):
        plan_leak_search([train], [], "/test", 40)
    with pytest.raises(UsageError, match="--flips has no effect with --no-near"):
        plan_leak_search([train], [], "/test", None, flips=True)
