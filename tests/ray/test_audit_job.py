"""The audit of splits on a real local Ray: planted leaks and wrong labels are found, with and without features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.choosing.audit import FINDINGS, TRAININGS, plan_audit, run_audit
from library.choosing.labels.embedders import read_folds
from library.choosing.labels.findings import FINDING_SCHEMA
from library.imaging import codec
from tests.picture_examples import ingest, write_files

RECIPE = """
model: lenet5
data: {train: x}
epochs: 1
batch_size: 16
optimizer: {name: adam, lr: 0.003}
"""


def bars(upright: bool, seed: int) -> bytes:
    """Noise with bars in one direction."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (32, 32, 1), np.uint8)
    start = int(rng.integers(2, 6))
    pixels[start::6] += 150
    return codec.encode(pixels if upright else pixels.transpose(1, 0, 2).copy(), codec.Encoding("png"))[0]


def splits(folder: Path) -> Path:
    """Two classes; two labels of train are wrong, and one picture of test is a picture of train."""
    for number, (split, count) in enumerate({"train": 80, "test": 20}.items()):
        files = {
            f"{'up' if row % 2 else 'across'}/{row}.png": bars(row % 2 == 1, 1000 * number + row)
            for row in range(count)
        }
        if split == "train":
            files |= {"up/wrong0.png": bars(False, 5000), "across/wrong1.png": bars(True, 5001)}
        else:
            files["up/copy.png"] = bars(True, 1)
        ingest(write_files(folder / "source" / split, files), folder / "out" / split)
    return folder / "out"


def test_an_audit_finds_planted_leaks_and_wrong_labels(tmp_path: Path) -> None:
    out, page = splits(tmp_path), tmp_path / "page"
    audit = run_audit(plan_audit(str(out), model="patches", near=None, report=str(page)), workers="2")
    table = pq.read_table(page / FINDINGS)
    assert table.schema.equals(FINDING_SCHEMA)
    by_kind = {(row["kind"], row["split"], row["key"]) for row in table.to_pylist()}
    assert ("leak", "test", "up/copy.png") in by_kind
    assert {("label_error", "train", f"{key}.png") for key in ("up/wrong0", "across/wrong1")} <= by_kind
    assert sum(audit.counts()["label_error"].values()) <= 4
    assert not audit.skipped
    text = (page / "index.html").read_text()
    assert "labelled up, looks like across" in text
    assert "exact duplicate of up/1.png in train" in text
    assert 'alt="up/copy.png"' in text
    assert 'alt="its copy"' in text

    # What was computed beside the datasets is used again; without features the rest is looked at all the same.
    again = run_audit(plan_audit(str(out), model="patches", near=None), workers="1")
    assert again.findings.equals(audit.findings)
    without = run_audit(plan_audit(str(out), near=None), workers="1")
    assert without.counts()["leak"] == audit.counts()["leak"]
    assert "--bundle" in without.skipped[0]


@pytest.mark.faults
def test_a_full_audit_judges_every_label_by_networks_that_never_saw_it(tmp_path: Path) -> None:
    out, page = splits(tmp_path), tmp_path / "page"
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    plan = plan_audit(str(out), full=str(tmp_path / "recipe.yaml"), folds=2, near=None, report=str(page))
    audit = run_audit(plan, workers="1", gpu=False)
    fold_of = read_folds(str(page / TRAININGS / "folds.npz"))
    assert len(fold_of) == 82
    for fold in range(2):
        record = json.loads((page / TRAININGS / f"fold-{fold + 1}" / "bundle.json").read_text())
        assert record["provenance"]["train_pictures"] == sum(other != fold for other in fold_of.values())
    assert audit.accuracy is not None
    assert audit.counts()["leak"] == {"train": 0, "test": 1}
    assert [line.partition(":")[0] for line in audit.skipped] == ["outliers", "label errors of test"]
