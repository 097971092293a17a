import numpy as np
import pyarrow as pa

from library.choosing.labels.confident_learning import LabelErrors
from library.choosing.labels.findings import (
    FINDING_SCHEMA,
    KINDS,
    Member,
    class_balance,
    extremes,
    label_errors,
    leaks,
    odd_sizes,
    outliers,
    ranked,
    unreadable,
)
from library.choosing.splits.leaks import LEAK_SCHEMA

MEMBER = Member("train", [f"k{row}" for row in range(40)], ["cat"] * 40)


def columns(**changed: float) -> pa.Table:
    """Measures of 40 ordinary pictures, of which the last has other values."""
    names = ("brightness", "contrast", "entropy", "sharpness", "colourfulness", "width", "height")
    rng = np.random.default_rng(0)
    values = {name: 100 + rng.random(40) for name in names}
    for name, value in changed.items():
        values[name][-1] = value
    return pa.table(values)


def test_only_the_picture_with_an_extreme_score_is_named() -> None:
    assert extremes(MEMBER, columns()).num_rows == 0
    found = extremes(MEMBER, columns(brightness=0, sharpness=900)).to_pylist()
    assert {(row["key"], row["kind"], row["detail"].split()[0]) for row in found} == {
        ("k39", "extreme", "brightness"),
        ("k39", "extreme", "sharpness"),
    }
    assert all(row["score"] > 0 for row in found)


def test_a_size_is_odd_by_area_or_by_proportions() -> None:
    assert odd_sizes(MEMBER, columns()).num_rows == 0
    for changed in ({"width": 1000.0, "height": 1000.0}, {"width": 1000.0, "height": 10.0}):
        (found,) = odd_sizes(MEMBER, columns(**changed)).to_pylist()
        assert found["key"] == "k39"
        assert found["detail"].startswith("1000x")


def test_pictures_without_measures_are_unreadable_and_nothing_else() -> None:
    table = columns()
    nulls = {name: [*table[name].to_pylist()[:-1], None] for name in table.column_names}
    assert extremes(MEMBER, pa.table(nulls)).num_rows == odd_sizes(MEMBER, pa.table(nulls)).num_rows == 0
    (found,) = unreadable(MEMBER, [None] * 39 + ["truncated"]).to_pylist()
    assert (found["key"], found["detail"]) == ("k39", "truncated")


def test_label_errors_go_to_the_split_of_their_picture() -> None:
    members = [MEMBER, Member("test", ["t0", "t1"], ["dog", None])]
    errors = LabelErrors(np.array([2, 0]), np.array([0, 1]), np.array([0.1, 0.3]), np.eye(2))
    found = label_errors(members, [(0, 5), (0, 6), (1, 0)], errors, ["cat", "dog"]).to_pylist()
    assert [(row["split"], row["key"], row["detail"]) for row in found] == [
        ("train", "k5", "labelled cat, looks like dog"),
        ("test", "t0", "labelled dog, looks like cat"),
    ]
    assert [row["score"] for row in found] == [0.7, 0.9]


def test_leaks_rank_the_same_file_before_near_ones() -> None:
    rows = [("a", "cat", "near_duplicate", 0, "x", "cat", True), ("b", "cat", "exact_duplicate", 0, "y", "dog", False)]
    table = pa.table(dict(zip(LEAK_SCHEMA.names, zip(*rows, strict=True), strict=True)), LEAK_SCHEMA)
    found = ranked([leaks("test", "train", table)]).to_pylist()
    assert [row["key"] for row in found] == ["b", "a"]
    assert found[0]["detail"] == "exact duplicate of y in train, which is labelled dog"
    assert (found[0]["copy_split"], found[0]["copy_key"]) == ("train", "y")


def test_findings_are_ranked_by_kind_and_then_by_score() -> None:
    tables = [odd_sizes(MEMBER, columns(width=5000.0)), extremes(MEMBER, columns(brightness=0, sharpness=900))]
    distances = np.full(40, 0.1)
    distances[[3, 7]] = 0.9, 0.8
    found = ranked([*tables, outliers(MEMBER, range(40), distances)])
    kinds = found["kind"].to_pylist()
    assert kinds == sorted(kinds, key=list(KINDS).index)
    assert found["key"].to_pylist()[:2] == ["k3", "k7"]
    assert ranked([]).schema == FINDING_SCHEMA


def test_rare_and_absent_classes_are_named() -> None:
    balance = class_balance({"train": {"cat": 100, "dog": 90, "emu": 5}, "test": {"cat": 10, "dog": 10}})
    assert (balance.rare, balance.absent) == (["emu"], {"train": [], "test": ["emu"]})
    assert balance.ratio == 22
    assert class_balance({"train": {}}).ratio is None
