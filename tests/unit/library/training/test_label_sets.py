"""Training on pictures that may have any number of classes: rows, loss and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional

from library.errors import UsageError
from library.imaging import codec
from library.models.build import create
from library.recipe import Recipe
from library.training.batches import Batch
from library.training.label_sets import LabelSets
from library.training.learner import Learner, Score
from library.training.rows import read_labelled_rows, read_part, split_rows
from tests.picture_examples import ingest

PNG, _ = codec.encode(np.zeros((4, 4, 1), np.uint8), codec.Encoding("png"))
TAGS = [["cat"], ["dog", "cat"], [], ["cat", "dog"], ["eel"], ["dog", "dog"]]


def dataset(folder: Path, tags: list[Any], dtype: pa.DataType | None = None) -> str:
    """A dataset with a column `tags`."""
    (folder / "raw").mkdir(parents=True)
    table = pa.table(
        {
            "key": [f"{number:03d}" for number in range(len(tags))],
            "image": pa.array([{"bytes": PNG}] * len(tags), pa.struct([("bytes", pa.binary())])),
            "tags": pa.array(tags, dtype or pa.list_(pa.string())),
        }
    )
    pq.write_table(table, folder / "raw" / "data.parquet")
    ingest(folder / "raw", folder / "dataset")
    return str(folder / "dataset")


def test_each_distinct_set_of_names_is_one_label(tmp_path: Path) -> None:
    rows, _ = read_labelled_rows(dataset(tmp_path, TAGS), None, "tags")
    assert rows.names == ("cat", "dog", "eel")
    assert rows.class_counts == {"[]": 1, '["cat", "dog"]': 2, '["cat"]': 1, '["dog"]': 1, '["eel"]': 1}
    assert rows.name_counts == {"cat": 3, "dog": 3, "eel": 1}
    assert len(rows) == 6
    table = read_part(rows, (0, 0, 6)).to_pylist()
    assert rows.label_sets is not None
    found = {row["key"]: {rows.names[n] for n in rows.label_sets.sets[rows.class_ids[row["label"]]]} for row in table}
    assert [found[f"{number:03d}"] for number in range(6)] == [set(names) for names in TAGS]


def test_validation_has_the_same_numbers_even_for_sets_of_its_own(tmp_path: Path) -> None:
    uris = dataset(tmp_path / "a", TAGS), dataset(tmp_path / "b", [["eel", "cat"], ["dog"]])
    train, val = read_labelled_rows(*uris, "tags")
    assert val is not None
    assert train.classes == val.classes
    assert train.class_counts['["cat", "eel"]'] == 0
    assert val.name_counts == {"cat": 1, "dog": 1, "eel": 1}


def test_other_names_than_the_chosen_classes_do_not_count(tmp_path: Path) -> None:
    rows, _ = read_labelled_rows(dataset(tmp_path, TAGS), None, "tags", ["eel", "cat"])
    assert (rows.names, rows.name_counts) == (("eel", "cat"), {"eel": 1, "cat": 3})
    assert len(rows) == 6


def test_the_split_holds_out_a_fraction_of_all_pictures(tmp_path: Path) -> None:
    rows, _ = read_labelled_rows(dataset(tmp_path, [["a"], ["b"], ["a", "b"], []] * 10), None, "tags")
    train, val = split_rows(rows, 0.2, seed=1)
    assert (len(train), len(val)) == (32, 8)
    assert {name: train.name_counts[name] + val.name_counts[name] for name in "ab"} == rows.name_counts


@pytest.mark.parametrize(
    ("tags", "dtype", "column", "message"),
    [
        ([["a"], None, ["b"]], None, "tags", "1 pictures of .* have no list"),
        ([["a"], ["a"]], None, "tags", "has 1 class"),
        ([["a"], ["b"]], None, "labels", "does not exist; .* \\(tags\\)"),
        (["a", "b"], pa.string(), "tags", "holds string"),
    ],
)
def test_what_is_not_lists_of_names_is_refused(
    tmp_path: Path, tags: list[Any], dtype: pa.DataType | None, column: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_labelled_rows(dataset(tmp_path, tags, dtype), None, column)


def test_unknown_classes_in_validation_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lacks: fox; choose the classes with"):
        read_labelled_rows(dataset(tmp_path / "a", TAGS), dataset(tmp_path / "b", [["fox"]]), "tags")


# -- learning ---------------------------------------------------------------------------------------------------------

SETS = LabelSets("tags", ("a", "b", "c"), ("[]", '["a"]', '["a", "c"]', '["b", "c"]')).sets
RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (16, 28, 28, 1), np.uint8)
LABELS = np.arange(16) % 4
BATCH = Batch(PICTURES, LABELS, [""] * 16, 16)


def learner(**fields: Any) -> Learner:
    recipe = Recipe.model_validate(
        {
            "data": {"train": "train", "val": "val", "labels": "tags"},
            "model": "lenet5",
            "optimizer": {"name": "adamw", "lr": 0.003},
            "schedule": {"name": "constant"},
            "batch_size": 16,
            "epochs": 4,
            **fields,
        }
    )
    torch.manual_seed(0)
    return Learner(
        recipe,
        create("lenet5", num_classes=3),
        class_counts=dict.fromkeys("abc", 4),
        label_sets=SETS,
        total_steps=60,
        steps_per_epoch=15,
        device=torch.device("cpu"),
    )


def targets() -> torch.Tensor:
    return torch.tensor([[float(number in SETS[label]) for number in range(3)] for label in LABELS])


@pytest.mark.parametrize("fields", [{}, {"accumulate": 4}, {"ema": 0.9}])
def test_the_loss_is_binary_cross_entropy_and_falls(fields: dict[str, Any]) -> None:
    one = learner(**fields)
    with torch.no_grad():
        logits = one.model.eval()(torch.from_numpy(PICTURES).permute(0, 3, 1, 2))
    expected = functional.binary_cross_entropy_with_logits(logits, targets()).item()
    losses = [float(one.step(BATCH, step)) for step in range(60)]
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0] / 4


def test_the_score_is_the_f1_of_scikit_learn() -> None:
    one = learner()
    for step in range(8):
        one.step(BATCH, step)
    score = Score.from_vector([2 * value for value in one.score(BATCH).vector()])  # as summed over two workers
    with torch.no_grad():
        found = one.model.eval()(torch.from_numpy(PICTURES).permute(0, 3, 1, 2)).sigmoid() >= 0.5
    means = score.means("val", several_labels=True)
    assert means["val_f1"] == pytest.approx(f1_score(targets().numpy(), found.numpy(), average="micro"))
    assert set(means) == {"val_loss", "val_f1"}
    assert Score(1).means("val", several_labels=True)["val_f1"] == 1
