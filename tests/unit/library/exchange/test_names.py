"""Names of pictures outside a dataset."""

from __future__ import annotations

import posixpath
import string

from hypothesis import given
from hypothesis import strategies as st

from library import storage
from library.exchange.names import NAMINGS, SUFFIXES, Naming, are_unique, file_path, sample_key
from library.sources.archives.tarfiles import member_path
from library.sources.entries import is_other_name, is_picture_name, why_skipped

_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("./%_ -" + string.ascii_letters))
_LABELS = st.none() | _TEXT
_FORMATS = st.sampled_from(sorted(SUFFIXES))
_NAMINGS = st.sampled_from(NAMINGS)


@given(_TEXT, _LABELS, _FORMATS, _NAMINGS)
def test_a_path_is_one_folder_and_one_name_that_ingest_reads(
    key: str, label: str | None, format_: str, naming: Naming
) -> None:
    path = file_path(key, label, format_, naming)
    folder, name = path.split("/")
    assert is_picture_name(name)
    for part in (folder, name):
        assert part.strip() == part
        assert part not in ("", ".", "..")
        assert why_skipped(part) is None
        assert len(part.encode()) <= 255
    assert not is_other_name(name)
    assert posixpath.normpath(path) == path
    assert storage.join("/data/out", path) == f"/data/out/{path}"


@given(_TEXT, _TEXT, _LABELS, _FORMATS)
def test_different_keys_get_different_names(one: str, other: str, label: str | None, format_: str) -> None:
    paths = {file_path(key, label, format_, "long") for key in (one, other)}
    keys = {sample_key(key, format_, "long") for key in (one, other)}
    assert len(paths) == len(keys) == len({one, other})


@given(_TEXT, _FORMATS, _NAMINGS)
def test_a_sample_is_a_safe_member_whose_key_ends_at_the_first_dot(key: str, format_: str, naming: Naming) -> None:
    name = sample_key(key, format_, naming)
    member = f"{name}.{SUFFIXES[format_]}"
    assert "." not in posixpath.basename(name)
    assert member_path(member) == (member, None, None)


def test_ordinary_keys_are_names_that_people_recognize() -> None:
    assert file_path("cat/1.jpg", "cat", "jpeg", "short") == "cat/1.jpg"
    assert file_path("train/0/17", "7", "png", "short") == "7/train%2F0%2F17.png"
    assert sample_key("cat/1.jpg", "jpeg", "short") == "cat/1"


def test_names_that_differ_only_in_case_do_not_count_as_different() -> None:
    assert are_unique(["a", "b"])
    assert not are_unique(["a", "A"])
    assert not are_unique(["é", "e\u0301"])


@given(st.sets(st.text("aAéÉe\u0301ßsS/.%-", max_size=4), max_size=8), _FORMATS)
def test_caseless_names_differ_on_every_disk(keys: set[str], format_: str) -> None:
    assert are_unique(sample_key(key, format_, "caseless") for key in keys)
    assert are_unique(file_path(key, "x", format_, "caseless") for key in keys)
    assert are_unique(file_path("1.jpg", label, format_, "caseless") for label in keys)
