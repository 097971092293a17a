"""Files on disk and in a real S3 server."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from library import storage
from library.errors import StriateError, UsageError
from library.storage import Span


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on disk, and one in a bucket."""
    if request.param == "disk":
        return str(tmp_path / "folder")
    return request.getfixturevalue("bucket") + "/folder"


def test_what_is_written_is_read_back(folder: str) -> None:
    storage.write_bytes(f"{folder}/a/b.bin", b"hello")
    assert storage.read_bytes(f"{folder}/a/b.bin") == b"hello"
    assert storage.exists(f"{folder}/a/b.bin")
    assert storage.is_folder(f"{folder}/a")
    assert not storage.exists(f"{folder}/a/c.bin")


def test_a_listing_is_sorted_and_tells_sizes_and_paths(folder: str) -> None:
    for path in ("b/2.bin", "a.bin", "b/1.bin"):
        storage.write_bytes(f"{folder}/{path}", path.encode())
    found = storage.list_files(folder)
    assert [(file.path, file.size) for file in found] == [("a.bin", 5), ("b/1.bin", 7), ("b/2.bin", 7)]
    assert storage.read_bytes(found[1].uri) == b"b/1.bin"


def test_a_listing_sees_what_another_program_wrote_after_the_last_listing(folder: str) -> None:
    assert storage.list_files(folder) == []
    storage.write_bytes(f"{folder}/late.bin", b"x")
    assert [file.path for file in storage.list_files(folder)] == ["late.bin"]
    storage.remove([f"{folder}/late.bin", f"{folder}/never-was.bin"])
    assert storage.list_files(folder) == []


def test_parts_of_many_files_come_in_the_order_asked_and_a_missing_one_is_its_error(folder: str) -> None:
    storage.write_bytes(f"{folder}/one.bin", bytes(range(100)))
    storage.write_bytes(f"{folder}/two.bin", bytes(range(100, 200)))
    parts = storage.read_many(
        [
            Span(f"{folder}/two.bin", 10, 3),
            Span(f"{folder}/gone.bin"),
            Span(f"{folder}/one.bin"),
            Span(f"{folder}/one.bin", 98, 2),
        ]
    )
    assert parts[0] == bytes([110, 111, 112])
    assert isinstance(parts[1], FileNotFoundError)
    assert parts[2] == bytes(range(100))
    assert parts[3] == bytes([98, 99])


def test_a_large_file_is_written_in_parts_and_its_digest_is_that_of_its_bytes(folder: str) -> None:
    block = os.urandom(2**20)
    with storage.writer(f"{folder}/large.bin") as file:
        for _ in range(40):
            file.write(block)
    assert file.size == 40 * 2**20
    assert file.digest == hashlib.sha256(block * 40).hexdigest()
    assert storage.size(f"{folder}/large.bin") == file.size
    with storage.open_read(f"{folder}/large.bin") as read:
        read.seek(17 * 2**20 + 5)
        assert read.read(10) == block[5:15]


@pytest.mark.parametrize("size", [10, 20 * 2**20], ids=["small", "in parts"])
def test_a_file_whose_writing_fails_does_not_appear_and_leaves_nothing(folder: str, size: int) -> None:
    storage.write_bytes(f"{folder}/kept.bin", b"old")
    with contextlib.suppress(ZeroDivisionError), storage.writer(f"{folder}/kept.bin") as file:
        file.write(b"x" * size)
        raise ZeroDivisionError
    assert [(found.path, found.size) for found in storage.list_files(folder)] == [("kept.bin", 3)]


def test_a_missing_file_is_named(folder: str) -> None:
    with pytest.raises(StriateError, match=r"cannot read .*folder/gone.bin: there is no such file"):
        storage.read_bytes(f"{folder}/gone.bin")


def test_a_bucket_that_does_not_exist_is_named(bucket: str) -> None:
    with pytest.raises(StriateError, match=r"cannot write s3://no-such-bucket-here/x.*no such bucket"):
        storage.write_bytes("s3://no-such-bucket-here/x", b"data")


def test_wrong_credentials_say_which_variables_to_check(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StriateError, match=r"cannot write s3://.*permission denied.*AWS_ACCESS_KEY_ID"):
        storage.write_bytes(f"{bucket}/x", b"data")
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("uri", "message"),
    [("http://host/x", "only local paths and s3://"), ("s3://", "names no bucket"), ("gs://b/x", "only local")],
)
def test_other_schemes_are_refused(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        storage.normalize(uri)


def test_paths_are_made_absolute_and_plain() -> None:
    assert storage.normalize("s3://bucket//a/../b/") == "s3://bucket/b"
    assert storage.normalize("s3://bucket/") == "s3://bucket"
    assert storage.normalize("x/../y/") == os.path.join(os.getcwd(), "y")


def test_a_folder_contains_itself_and_what_lies_in_it_also_through_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert storage.contains(str(tmp_path / "a"), str(tmp_path / "link" / "b"))
    assert not storage.contains(str(tmp_path / "a"), str(tmp_path / "ab"))
    assert storage.contains("s3://bucket/a", "s3://bucket/a/b")
    assert not storage.contains("s3://bucket/a", "s3://bucket/ab")
