"""Looks at pictures: kept in search.json, counted, and refused at test pictures that answered another question."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.search.earlier_looks import EarlierLooks, described_in, read_looks, write_record
from library.errors import StriateError, UsageError

DATASETS = {"confirmation": "val", "test": "test"}


def test_looks_are_read_as_they_were_written(tmp_path: Path) -> None:
    record = str(tmp_path / "search.json")
    assert read_looks(record) == []
    assert described_in(record) is None
    looks = EarlierLooks("question", DATASETS)
    looks.save = lambda: write_record(record, {"seeds": 10}, looks.looks)
    looks.record("confirmation", ["median", "invert"], [1, 2], "helps")
    looks.record("test", ["median"], [1, 2], "helps")
    assert read_looks(record) == looks.looks
    assert [look.outcome for look in read_looks(record)] == ["helps", "helps"]
    assert described_in(record) == {"seeds": 10}


def test_the_same_look_is_counted_once_and_another_one_is_found() -> None:
    looks = EarlierLooks("question", DATASETS)
    looks.record("confirmation", ["a", "b"], [1, 2], "none")
    looks.record("confirmation", ["b", "a"], [1, 2], "none")
    assert looks.count("confirmation") == 1
    assert looks.other("confirmation", ["a", "b"], [1, 2]) is None
    assert looks.other("confirmation", ["a"], [1, 2]) == looks.looks[0]
    looks.record("confirmation", ["a", "b"], [1, 2, 3], "helps")
    assert looks.count("confirmation") == 2
    assert EarlierLooks("question", {"confirmation": "other pictures"}, looks.looks).count("confirmation") == 0
    assert EarlierLooks("question", {"confirmation": "val"}, looks.looks).count("test") == 0


def test_test_pictures_that_answered_another_question_are_refused() -> None:
    looks = EarlierLooks("first", DATASETS)
    looks.record("test", ["median"], [1, 2], "helps")
    looks.check_test("out/test", "out/search")
    with pytest.raises(UsageError, match=r"--test out/test: .*median; use other test pictures"):
        EarlierLooks("second", DATASETS, looks.looks).check_test("out/test", "out/search")
    EarlierLooks("second", DATASETS | {"test": "new"}, looks.looks).check_test("out/new", "out/search")


@pytest.mark.parametrize("text", ["{", "[]", '{"looks": [1]}', '{"looks": [{"pictures": "test"}]}'])
def test_a_damaged_record_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(StriateError, match=r"search\.json"):
        read_looks(str(tmp_path / "search.json"))
