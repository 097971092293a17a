from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.choosing.duplicates.fingerprints import REASONS, Rule, fingerprints
from library.choosing.duplicates.keeping import DISAGREEING, Disagreeing, Duplicates, choose

FAR = 0xF0F0_F0F0_0F0F_0F0F


def pictures(*rows: dict[str, Any]) -> pa.Table:
    """Pictures that differ from each other in everything but what is given."""
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        random = np.random.default_rng(number)
        default: dict[str, Any] = {
            "key": f"key-{number}",
            "label": "cat",
            "format": "jpeg",
            "width": 40,
            "height": 30,
            "num_bytes": 900,
            "bytes_digest": bytes([number]) * 16,
            "pixels_digest": bytes([number]) * 16,
            "contrast": 0.2,
            **{name: int(random.integers(0, 2**64, dtype=np.uint64)) for name in ("phash", "dhash")},
            **{name: int(random.integers(0, 2**64, dtype=np.uint64)) for name in ("phash_flipped", "dhash_flipped")},
        }
        for name, value in (default | row).items():
            columns.setdefault(name, []).append(value)
    types = {name: pa.uint64() for name in columns if "hash" in name} | {"label": pa.string()}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})


def chosen(table: pa.Table, rule: Rule, disagreeing: Disagreeing = "keep", reference: int = 0) -> Duplicates:
    return choose(table, fingerprints(table, rule), disagreeing, reference)


def reasons(result: Duplicates) -> list[str]:
    return [REASONS[reason] for reason in result.reasons]


def near(bits: int) -> dict[str, int]:
    return {"phash": (1 << bits) - 1, "dhash": 0}


def test_equal_files_equal_pixels_and_near_hashes_have_their_own_reasons() -> None:
    table = pictures(
        near(0) | {"width": 80, "pixels_digest": b"p" * 16, "bytes_digest": b"b" * 16},
        near(0) | {"pixels_digest": b"p" * 16, "bytes_digest": b"b" * 16},
        near(0) | {"pixels_digest": b"p" * 16},
        near(3),
        near(5),
        {},
    )
    result = chosen(table, Rule(near=4))
    assert reasons(result) == ["", "exact_duplicate", "same_pixels", "near_duplicate", "", ""]
    assert result.partners.tolist() == [-1, 0, 0, 0, -1, -1]
    assert result.distances.tolist() == [255, 0, 0, 3, 255, 255]
    assert result.counts() == {"exact_duplicate": 1, "same_pixels": 1, "near_duplicate": 1}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"width": 41}, {"num_bytes": 5000}),
        ({"num_bytes": 901}, {"format": "png"}),
        ({"format": "png"}, {"key": "a"}),
        ({"key": "a"}, {"key": "b"}),
    ],
)
def test_the_larger_finer_lossless_and_first_one_stays(better: dict[str, Any], worse: dict[str, Any]) -> None:
    for first, second, stays in ((better, worse, 0), (worse, better, 1)):
        result = chosen(pictures(near(0) | first, near(0) | second), Rule(near=4))
        assert result.partners.tolist() == ([-1, 0] if stays == 0 else [1, -1])


def test_a_dropped_picture_is_a_duplicate_of_the_one_that_stays() -> None:
    chain = [near(bits) | {"num_bytes": 900 - bits} for bits in range(0, 25, 4)]
    result = chosen(pictures(*chain), Rule(near=4))
    assert not result.groups.any()  # one chain, whose ends differ in 24 bits
    assert reasons(result) == ["", "near_duplicate"] * 3 + [""]
    assert (result.distances[result.reasons > 0] <= 4).all()


def test_the_second_hash_can_tell_pictures_apart() -> None:
    table = pictures({"phash": 1, "dhash": 0}, {"phash": 1, "dhash": FAR})
    assert reasons(chosen(table, Rule(near=4))) == ["", ""]


def test_flat_and_damaged_pictures_are_compared_only_exactly() -> None:
    flat = {"phash": 1 << 63, "dhash": 0, "contrast": 0.001}
    damaged = {"phash": None, "dhash": None, "contrast": None, "pixels_digest": None}
    table = pictures(flat, flat, damaged, damaged, damaged | {"bytes_digest": bytes([3]) * 16})
    assert reasons(chosen(table, Rule(near=4))) == ["", "", "", "", "exact_duplicate"]


def test_mirrored_pictures_count_where_flips_are_asked_for() -> None:
    table = pictures(
        {"phash": 7, "dhash": 7, "phash_flipped": FAR, "dhash_flipped": FAR},
        {"phash": FAR, "dhash": FAR, "phash_flipped": 7, "dhash_flipped": 7},
    )
    assert reasons(chosen(table, Rule(near=4))) == ["", ""]
    result = chosen(table, Rule(near=4, flips=True))
    assert reasons(result) == ["", "near_duplicate"]
    assert result.distances[1] == 0


def test_without_near_only_exact_duplicates_are_dropped() -> None:
    same = {"pixels_digest": b"p" * 16}
    table = pictures(near(0) | same, near(0) | same, near(0)).drop_columns(["phash", "dhash", "contrast"])
    assert reasons(chosen(table, Rule(near=None))) == ["", "same_pixels", ""]


@pytest.mark.parametrize("disagreeing", DISAGREEING)
def test_groups_whose_labels_disagree_stay_whole_unless_asked(disagreeing: Disagreeing) -> None:
    table = pictures(
        near(0) | {"label": "cat"},
        near(0) | {"label": "dog"},
        near(0) | {"label": "dog"},
        near(40),
        near(40) | {"label": None},
    )
    result = chosen(table, Rule(near=4), disagreeing)
    assert result.disagreeing.tolist() == [True, True, True, False, False]
    expected = {
        "keep": ["", "", ""],
        "best": ["near_duplicate", "", "near_duplicate"],  # two of three are dogs
        "drop": ["labels_disagree"] * 3,
    }
    assert reasons(result) == [*expected[disagreeing], "", "near_duplicate"]


def test_pictures_of_the_reference_always_stay() -> None:
    table = pictures(near(0) | {"width": 400}, near(1), {}, near(0), near(0) | {"key": "z"})
    result = chosen(table, Rule(near=4), reference=2)
    assert reasons(result) == ["near_duplicate", "near_duplicate", "", "", ""]
    assert result.partners[:2].tolist() == [3, 3]


def test_a_picture_near_any_picture_of_the_reference_is_dropped() -> None:
    same = {"pixels_digest": b"r" * 16}
    table = pictures(near(8), near(0), near(4), near(0) | same, near(0) | same)
    result = chosen(table, Rule(near=4), reference=3)  # the first is near only the third, which is near the others
    assert reasons(result) == ["near_duplicate", "near_duplicate", "", "", ""]
    assert result.partners[0] == 2


def test_thousands_of_equal_pictures_of_the_reference_are_one_pass() -> None:
    number = 20_000
    columns = pictures({"pixels_digest": b"p" * 16}).to_pydict()
    table = pa.table({name: values * number for name, values in columns.items()}, pictures({}).schema)
    table = table.set_column(table.schema.get_field_index("key"), "key", pa.array(map(str, range(number))))
    result = chosen(table, Rule(near=None), reference=number - 1)
    assert reasons(result)[0] == "exact_duplicate"
    assert not result.reasons[1:].any()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from(DISAGREEING), st.booleans())
def test_the_order_of_pictures_does_not_change_who_stays(
    seed: int, number: int, disagreeing: Disagreeing, flips: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        near(int(rng.integers(0, 30)))
        | {"label": str(rng.choice(["cat", "dog"], p=[0.95, 0.05])), "width": int(rng.integers(30, 34))}
        for _ in range(number)
    ]
    table = pictures(*rows)
    shuffled = rng.permutation(number)
    rule = Rule(near=3, flips=flips)
    one, other = chosen(table, rule, disagreeing), chosen(table.take(pa.array(shuffled)), rule, disagreeing)
    assert np.array_equal(one.reasons[shuffled], other.reasons)
    assert np.array_equal(one.disagreeing[shuffled], other.disagreeing)
    partners = np.where(other.partners < 0, -1, shuffled[np.maximum(other.partners, 0)])
    assert np.array_equal(one.partners[shuffled], partners)
    dropped = np.flatnonzero(one.partners >= 0)
    assert not one.reasons[one.partners[dropped]].any()


@pytest.mark.parametrize(("near", "cosine", "reference"), [(3, None, 0), (None, 0.94, 0), (3, 0.94, 400)])
def test_in_a_long_chain_the_same_stay_as_one_by_one(near: int | None, cosine: float | None, reference: int) -> None:
    number, rng = 1400, np.random.default_rng(7)
    flips = np.array([[1 << int(bit) for bit in rng.choice(64, 2, replace=False)] for _ in range(number)], np.uint64)
    vectors = np.zeros((number, 32), np.float32)
    vectors[0, 0] = 1
    for row in range(1, number):
        walked = vectors[row - 1] + 0.05 * rng.normal(size=32)
        vectors[row] = walked / np.linalg.norm(walked)
    digests = pa.array([row.to_bytes(16) for row in range(number)])
    every = np.arange(number)
    columns: dict[str, Any] = {
        "key": [f"{row:05d}" for row in every],
        "label": ["cat"] * number,
        "format": ["png"] * number,
        "width": rng.permutation(number) + 1,
        "height": [1] * number,
        "num_bytes": [9] * number,
        "bytes_digest": digests,
        "pixels_digest": digests.take(pa.array(np.minimum(every, number - 1 - reference // 2))),
        "contrast": [0.2] * number,
        "phash": np.bitwise_xor.accumulate(np.bitwise_or.reduce(flips, 1)),
        "dhash": np.zeros(number, np.uint64),
    }
    table = pa.table(columns)
    rule = Rule(near, cosine=cosine)
    prints = fingerprints(table, rule, None if cosine is None else vectors)
    steps: list[tuple[int, int]] = []
    result = choose(table, prints, reference=reference, decided=lambda *step: steps.append(step))
    rank = np.lexsort((-columns["width"], every < number - reference))
    reasons, partners = np.zeros(number, np.int8), np.full(number, -1)
    for place, picture in enumerate(rank):
        later = rank[place + 1 :][reasons[rank[place + 1 :]] == 0]
        later = later[later < number - reference]
        if not reasons[picture]:
            found = prints.reason(np.full(len(later), picture), later)
            reasons[later[found > 0]], partners[later[found > 0]] = found[found > 0], picture
    assert np.count_nonzero(reasons == 0) > 512, "more than one block"
    assert np.array_equal(result.reasons, reasons)
    assert np.array_equal(result.partners, partners)
    assert steps[-1][0] == steps[-1][1]
    assert steps == sorted(steps)


def test_nothing_is_chosen_from_no_pictures() -> None:
    table = pictures({}).slice(0, 0)
    assert chosen(table, Rule(near=4)).counts() == {}
