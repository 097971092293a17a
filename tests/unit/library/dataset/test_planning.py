"""Plans: the same every time, shuffled across classes, cut by size."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.dataset.planning import (
    DEFAULT_SHARD_BYTES,
    MIN_SHARD_BYTES,
    MIN_SHARDS,
    Layout,
    hash64,
    parse_fractions,
    plan,
    shard_bytes_for,
)
from library.dataset.task import ShardTask
from library.errors import UsageError
from library.sources import INDEX_SCHEMA


def listing(labels: Sequence[str | None], *, sizes: Sequence[int] | int = 100, **columns: Sequence[Any]) -> pa.Table:
    """Index rows of a source that is sorted by key."""
    count = len(labels)
    values: dict[str, Any] = {
        "key": [f"{number:05}.jpg" for number in range(count)],
        "uri": ["/raw"] * count,
        "at": range(count),
        "size": [sizes] * count if isinstance(sizes, int) else sizes,
        "label": labels,
        **columns,
    }
    arrays = [pa.array(list(values.get(column.name, [None] * count)), column.type) for column in INDEX_SCHEMA]
    return pa.table(arrays, schema=INDEX_SCHEMA)


def rows_of(task: ShardTask) -> list[dict[str, Any]]:
    with pa.ipc.open_stream(task.index) as stream:
        return stream.read_all().to_pylist()


def keys_of(task: ShardTask) -> list[str]:
    return [row["key"] for row in rows_of(task)]


TWO_CLASSES = listing(["cat"] * 500 + ["dog"] * 500)
SMALL = Layout(shard_bytes=10_000)


# -- shards -----------------------------------------------------------------------------------------------------------


def test_every_picture_is_in_one_shard_and_tasks_count_theirs() -> None:
    tasks = plan(TWO_CLASSES, "/made", SMALL)
    assert sorted(key for task in tasks for key in keys_of(task)) == TWO_CLASSES["key"].to_pylist()
    assert [task.stem for task in tasks] == [f"part-{number:06}" for number in range(len(tasks))]
    for task in tasks:
        assert (task.dataset, task.rows, task.max_rows) == ("/made", len(rows_of(task)), None)


def test_tasks_hold_complete_rows_of_the_listing() -> None:
    index = listing(["a", None, "b"], problem=["empty: no bytes", None, None]).append_column(
        "extra.n", pa.array([1, 2, 3])
    )
    rows = sorted((row for task in plan(index, "/made", Layout()) for row in rows_of(task)), key=lambda row: row["key"])
    assert rows == index.to_pylist()


def test_the_plan_does_not_depend_on_the_order_of_the_listing() -> None:
    shuffled = TWO_CLASSES.take(np.random.default_rng(0).permutation(1000))
    chunks = pa.concat_tables([TWO_CLASSES.slice(300), TWO_CLASSES.slice(0, 300)])
    for layout in (SMALL, dataclasses.replace(SMALL, fractions={"train": 0.8, "val": 0.2})):
        plans = [plan(index, "/made", layout) for index in (TWO_CLASSES, TWO_CLASSES, shuffled, chunks)]
        assert plans == [plans[0]] * 4


def test_another_seed_gives_another_order_and_other_digests() -> None:
    one, two = plan(TWO_CLASSES, "/made", SMALL), plan(TWO_CLASSES, "/made", dataclasses.replace(SMALL, seed=1))
    assert keys_of(one[0]) != keys_of(two[0])
    assert len({task.input_digest for task in [*one, *two]}) == len(one) + len(two)


def test_the_digest_of_a_shard_depends_on_its_own_rows_only() -> None:
    changed = TWO_CLASSES.to_pylist()
    changed[7]["label"] = "fish"
    before, after = plan(TWO_CLASSES, "/made", SMALL), plan(pa.Table.from_pylist(changed, INDEX_SCHEMA), "/made", SMALL)
    differing = [
        task.stem for task, other in zip(before, after, strict=True) if task.input_digest != other.input_digest
    ]
    assert differing == [task.stem for task in before if "00007.jpg" in keys_of(task)]


def test_shards_of_a_sorted_source_have_a_similar_mix_of_classes() -> None:
    for task in plan(TWO_CLASSES, "/made", SMALL):
        labels = [row["label"] for row in rows_of(task)]
        assert 25 <= labels.count("cat") <= 75
        changes = sum(one != two for one, two in itertools.pairwise(labels))
        assert changes > len(labels) / 4


def test_keys_are_shuffled_inside_and_across_shards() -> None:
    tasks = plan(TWO_CLASSES, "/made", SMALL)
    order = [int(key[:5]) for task in tasks for key in keys_of(task)]
    assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.15


@given(st.lists(st.integers(0, 500), min_size=1, max_size=200), st.integers(1, 5000))
def test_a_shard_exceeds_its_size_by_less_than_one_picture(sizes: list[int], target: int) -> None:
    tasks = plan(listing(["x"] * len(sizes), sizes=sizes), "/made", Layout(shard_bytes=target))
    sizes_of_shards = [[row["size"] for row in rows_of(task)] for task in tasks]
    assert sorted(size for part in sizes_of_shards for size in part) == sorted(sizes)
    for part in sizes_of_shards:
        assert part
        assert sum(part) <= target + max(sizes)
    whole = max(1, sum(sizes) // target)
    assert len(tasks) <= whole + 1


def test_shards_have_about_equal_size() -> None:
    totals = [sum(row["size"] for row in rows_of(task)) for task in plan(TWO_CLASSES, "/made", SMALL)]
    assert totals == [10_000] * 10


def test_the_default_shard_size_depends_on_the_size_of_the_source() -> None:
    assert shard_bytes_for(0) == shard_bytes_for(MIN_SHARD_BYTES) == MIN_SHARD_BYTES
    assert shard_bytes_for(10**15) == DEFAULT_SHARD_BYTES
    middle = MIN_SHARD_BYTES * MIN_SHARDS * 2
    assert shard_bytes_for(middle) == middle // MIN_SHARDS


def test_a_row_of_unknown_size_is_planned() -> None:
    index = listing(["x"] * 3, sizes=[0, 0, 0])
    assert [task.rows for task in plan(index, "/made", Layout())] == [3]


def test_rows_of_a_block_stay_together_and_are_shuffled_in_a_shard() -> None:
    uris, blocks = (
        [f"/raw/{number // 100}.parquet" for number in range(400)],
        [number // 20 % 5 for number in range(400)],
    )
    index = listing(["x"] * 400, uri=uris, block=blocks)
    tasks = plan(index, "/made", Layout(shard_bytes=6_000))
    of_shard = [[(row["uri"], row["block"]) for row in rows_of(task)] for task in tasks]
    # A block is cut only where a shard ends, so each shard adds at most one piece.
    pieces = Counter(block for blocks in of_shard for block in set(blocks))
    assert len(pieces) == 20
    assert sum(pieces.values()) < 20 + len(tasks)
    for blocks in of_shard:
        changes = sum(one != two for one, two in itertools.pairwise(blocks))
        assert changes > len(blocks) / 4
    order = [of_shard[0][0]] + [block for blocks in of_shard for block in blocks]
    assert order != sorted(order)


# -- splits -----------------------------------------------------------------------------------------------------------


def splits_of(index: pa.Table, layout: Layout) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = {}
    for task in plan(index, "/made", layout):
        splits.setdefault(task.dataset.removeprefix("/made").lstrip("/"), set()).update(keys_of(task))
    return splits


def test_each_split_of_the_source_becomes_a_dataset_in_the_usual_order() -> None:
    index = listing(["x"] * 6, split=["test", "train", "extra", "val", "train", "test"])
    tasks = plan(index, "/made", Layout())
    assert [(task.dataset, task.stem, task.rows) for task in tasks] == [
        ("/made/train", "part-000000", 2),
        ("/made/val", "part-000000", 1),
        ("/made/test", "part-000000", 2),
        ("/made/extra", "part-000000", 1),
    ]


def test_pictures_outside_the_splits_go_to_the_destination_itself() -> None:
    assert splits_of(listing(["x"] * 2, split=["train", None]), Layout()) == {"": {"00001.jpg"}, "train": {"00000.jpg"}}


@given(st.dictionaries(st.sampled_from(["a", "b", "c", ""]), st.integers(1, 60), min_size=1), st.integers(0, 5))
def test_fractions_hold_in_every_class_and_do_not_depend_on_the_seed(counts: dict[str, int], seed: int) -> None:
    labels = [label or None for label, count in counts.items() for _ in range(count)]
    index = listing(labels)
    fractions = {"train": 0.7, "val": 0.2, "test": 0.1}
    splits = splits_of(index, Layout(seed=seed, fractions=fractions))
    assert splits == splits_of(index, Layout(seed=0, fractions=fractions))
    assert sorted(key for keys in splits.values() for key in keys) == index["key"].to_pylist()
    label_of = dict(zip(index["key"].to_pylist(), labels, strict=True))
    for label, count in counts.items():
        for split, fraction in fractions.items():
            pictures = sum(label_of[key] == (label or None) for key in splits.get(split, ()))
            assert abs(pictures - fraction * count) < 1.001, (label, split)


def test_fractions_are_exact_where_they_can_be() -> None:
    index = listing(["cat"] * 700 + ["dog"] * 300)
    splits = splits_of(index, Layout(fractions={"train": 0.8, "val": 0.15, "test": 0.05}))
    cats = {split: sum(key < "00700" for key in keys) for split, keys in splits.items()}
    assert cats == {"train": 560, "val": 105, "test": 35}
    assert {split: len(keys) for split, keys in splits.items()} == {"train": 800, "val": 150, "test": 50}


def test_a_class_of_one_goes_to_the_largest_split() -> None:
    splits = splits_of(listing(["only"]), Layout(fractions={"test": 0.1, "val": 0.1, "train": 0.8}))
    assert splits == {"train": {"00000.jpg"}}


def test_a_split_is_not_a_contiguous_part_of_the_listing() -> None:
    splits = splits_of(TWO_CLASSES, Layout(fractions={"train": 0.5, "val": 0.5}))
    assert 85 < sum(key < "00250" for key in splits["train"]) < 165


def test_fractions_of_a_source_with_its_own_splits_are_refused() -> None:
    index = listing(["x"] * 2, split=["train", "test"])
    with pytest.raises(UsageError, match=r"the source has its own splits \(test, train\); join them with --split none"):
        plan(index, "/made", Layout(fractions={"train": 0.5, "val": 0.5}))


@pytest.mark.parametrize(
    ("text", "fractions"),
    [
        ("train=0.8,val=0.1,test=0.1", {"train": 0.8, "val": 0.1, "test": 0.1}),
        (" all = 1.0 ", {"all": 1.0}),
        ("a=.5, b=5e-1", {"a": 0.5, "b": 0.5}),
    ],
)
def test_fractions_are_read(text: str, fractions: dict[str, float]) -> None:
    assert parse_fractions(text) == fractions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=0.8,val", "'val' is wrong; write e.g. train=0.8,val=0.1,test=0.1"),
        ("train=0.8,train=0.2", "'train=0.2' is wrong"),
        ("train=0.8,../x=0.2", "'../x=0.2' is wrong"),
        ("train=a,val=0.2", "'train=a' is wrong"),
        ("train=1.2,val=-0.2", "'train=1.2' is wrong"),
        ("train=1,val=0", "'val=0' is wrong"),
        ("train=nan", "'train=nan' is wrong"),
        ("", "'' is wrong"),
        ("train=0.8,", "'' is wrong"),
        ("train=0.8,val=0.1", "the fractions sum to 0.9, not to 1"),
    ],
)
def test_wrong_fractions_are_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_fractions(text)
    assert message in str(raised.value)


# -- the hash ---------------------------------------------------------------------------------------------------------


def test_the_hash_never_changes_and_distinguishes_its_parts() -> None:
    # The order of every existing dataset depends on these numbers.
    assert hash64(0, "cat/1.jpg") == 0x5E2712CB05756C6E
    assert hash64("split", "日本") == 0x4B1D7E90A206244B
    assert hash64("a", "bc") != hash64("ab", "c")
    assert hash64(0, "x\udc80") != hash64(0, "x")
    assert 0 <= hash64("x") < 2**64
