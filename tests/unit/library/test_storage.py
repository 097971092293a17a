"""Files on disk and in stores: a real S3 server, and emulators of the other stores if their variables are set.

npx azurite-blob --blobPort 10000 --inMemoryPersistence --skipApiVersionCheck
gcp-storage-emulator start --port=9023 --in-memory
AZURE_STORAGE_CONNECTION_STRING=... \\
  STORAGE_EMULATOR_HOST=http://127.0.0.1:9023 pytest tests/unit/library/test_storage.py
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from library import storage, stores
from library.errors import StorageError, StriateError, UsageError
from library.storage import Span

_EMULATORS = {"az": "AZURE_STORAGE_CONNECTION_STRING", "gs": "STORAGE_EMULATOR_HOST"}


@pytest.fixture(params=["disk", "s3", "az", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on disk, in a bucket or in a container."""
    if request.param == "disk":
        return str(tmp_path / "folder")
    if request.param in _EMULATORS:
        if _EMULATORS[request.param] not in os.environ:
            pytest.skip(f"needs an emulator that {_EMULATORS[request.param]} names; none is among the test packages")
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        stores.opened(f"{request.param}://{name}")[0].mkdir(name)
        return f"{request.param}://{name}/folder"
    return request.getfixturevalue("bucket") + "/folder"


def test_written_files_are_read_back(folder: str) -> None:
    storage.write_bytes(f"{folder}/a/b.bin", b"hello")
    assert storage.read_bytes(f"{folder}/a/b.bin") == b"hello"
    assert storage.exists(f"{folder}/a/b.bin")
    assert storage.is_folder(f"{folder}/a")
    assert not storage.exists(f"{folder}/a/c.bin")


def test_a_listing_is_sorted_and_has_sizes_and_paths(folder: str) -> None:
    for path in ("b/2.bin", "a.bin", "b/1.bin"):
        storage.write_bytes(f"{folder}/{path}", path.encode())
    files = storage.list_files(folder)
    assert [(file.path, file.size) for file in files] == [("a.bin", 5), ("b/1.bin", 7), ("b/2.bin", 7)]
    assert storage.read_bytes(files[1].uri) == b"b/1.bin"


def test_a_listing_is_never_served_from_memory(folder: str) -> None:
    assert storage.list_files(folder) == []
    storage.write_bytes(f"{folder}/late.bin", b"x")
    assert [file.path for file in storage.list_files(folder)] == ["late.bin"]
    storage.remove([f"{folder}/late.bin", f"{folder}/never-was.bin"])
    assert storage.list_files(folder) == []


def test_parts_of_files_are_read_in_order_and_a_missing_one_is_its_error(folder: str) -> None:
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


def test_a_large_file_is_written_in_parts_with_the_digest_of_its_bytes(folder: str) -> None:
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
def test_a_failed_write_leaves_the_old_file_and_nothing_else(folder: str, size: int) -> None:
    storage.write_bytes(f"{folder}/kept.bin", b"old")
    with contextlib.suppress(ZeroDivisionError), storage.writer(f"{folder}/kept.bin") as file:
        file.write(b"x" * size)
        raise ZeroDivisionError
    assert [(file.path, file.size) for file in storage.list_files(folder)] == [("kept.bin", 3)]


def test_a_missing_file_is_named(folder: str) -> None:
    with pytest.raises(StriateError, match=r"cannot read .*folder/gone.bin: there is no such file"):
        storage.read_bytes(f"{folder}/gone.bin")


def test_a_bucket_that_does_not_exist_is_named(bucket: str) -> None:
    with pytest.raises(StriateError, match=r"cannot write s3://no-such-bucket-here/x.*no such bucket"):
        storage.write_bytes("s3://no-such-bucket-here/x", b"data")


def test_a_check_for_writing_leaves_nothing_behind(folder: str, tmp_path: Path) -> None:
    storage.check_writable(f"{folder}/deep/report")
    assert not storage.exists(folder)
    assert storage.list_files(folder) == []
    storage.write_bytes(f"{folder}/deep/kept", b"x")
    storage.check_writable(f"{folder}/deep/report")
    assert [file.path for file in storage.list_files(folder)] == ["deep/kept"]
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StriateError):
        storage.check_writable(str(tmp_path / "file" / "report"))
    (tmp_path / "empty").mkdir()
    storage.check_writable(str(tmp_path / "empty"))
    assert (tmp_path / "empty").is_dir(), "it was there before"


def test_what_may_pass_is_tried_again_and_what_cannot_is_not(tmp_path: Path) -> None:
    file, waits = tmp_path / "file", list[float]()
    file.symlink_to(file)  # reading fails, though it is there

    def repaired(seconds: float) -> None:
        waits.append(seconds)
        file.unlink()
        file.write_bytes(b"data")

    assert storage.patiently(lambda: storage.read_bytes(str(file)), repaired) == b"data"
    assert waits == [storage.WAITS_S[0]]
    with pytest.raises(StriateError, match="no such file") as raised:
        storage.patiently(lambda: storage.read_bytes(str(tmp_path / "gone")), waits.append)
    assert not isinstance(raised.value, StorageError)
    assert len(waits) == 1
    with pytest.raises(StriateError) as raised:
        storage.patiently(lambda: storage.read_bytes(str(tmp_path)), waits.append)
    with pytest.raises(StriateError, match="name too long") as too_long:
        storage.patiently(lambda: storage.write_bytes(str(tmp_path / ("x" * 300)), b""), waits.append)
    assert not isinstance(raised.value, StorageError)
    assert not isinstance(too_long.value, StorageError)
    assert len(waits) == 1
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(StorageError, match="cannot read"):
        storage.patiently(lambda: storage.read_bytes(str(file)), waits.append)
    assert waits == [storage.WAITS_S[0], *storage.WAITS_S]


def test_the_writing_codes_own_error_is_not_reported_as_the_stores(folder: str) -> None:
    with pytest.raises(OSError, match="of something else"), storage.writer(f"{folder}/x.bin"):
        raise OSError("of something else")


def test_wrong_credentials_say_which_variables_to_check(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StriateError, match=r"cannot write s3://.*permission denied.*AWS_ACCESS_KEY_ID"):
        storage.write_bytes(f"{bucket}/x", b"data")
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_file_is_written_though_its_empty_folder_is_removed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, make, removed = tmp_path / "out", os.makedirs, list[str]()

    def make_and_lose(path: str, *, exist_ok: bool) -> None:
        make(path, exist_ok=exist_ok)
        if not removed:  # as `check_writable` of another process does
            removed.append(path)
            os.rmdir(path)

    monkeypatch.setattr(os, "makedirs", make_and_lose)
    storage.write_bytes(str(folder / "file"), b"x")
    assert removed == [str(folder)]
    assert (folder / "file").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "http://host/x",
            r"only local paths, s3://, gs://, az:// and hf:// are supported; .*`striate ingest LIST.csv DEST`",
        ),
        ("ftp://host/x", r"only local paths, s3://, gs://, az:// and hf:// are supported$"),
        ("s3://", "has no bucket; write it like s3://bucket/folder"),
        ("abfs:///x", "has no container; write it like az://container/folder"),
    ],
)
def test_an_unsupported_address_names_the_supported_ones(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        storage.normalize(uri)


@pytest.mark.parametrize(
    ("scheme", "package", "how"), [("gs", "gcsfs", "'striate[sources]'"), ("az", "adlfs", "'striate[sources]'")]
)
def test_a_store_whose_package_is_missing_names_it(
    scheme: str, package: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(UsageError, match=rf"{scheme}:// needs the package {package}: pip install {re.escape(how)}"):
        storage.exists(f"{scheme}://bucket/x")


@pytest.mark.parametrize("write", [lambda uri: storage.write_bytes(uri, b"x"), lambda uri: storage.remove([uri])])
def test_a_hub_repository_can_be_read_but_not_written(write: Callable[[str], None]) -> None:
    with pytest.raises(UsageError, match="hf:// is read-only"):
        write("hf://datasets/owner/name/x")


def test_any_fsspec_file_system_works_through_the_same_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stores.STORES, "memory", stores.Store("", "memory://b/x", "bucket", "", ()))
    folder = f"memory://bucket-{uuid.uuid4().hex}/folder"
    storage.write_bytes(f"{folder}/a/1.bin", b"12345")
    with storage.writer(f"{folder}/b.bin") as file:
        file.write(b"abc")
    assert [(file.path, file.size) for file in storage.list_files(folder)] == [("a/1.bin", 5), ("b.bin", 3)]
    assert storage.list_files(f"{folder}/none") == []
    assert [storage.is_folder(uri) for uri in (folder, f"{folder}/a", f"{folder}/b.bin")] == [True, True, False]
    spans = [Span(f"{folder}/b.bin"), Span(f"{folder}/none"), Span(f"{folder}/a/1.bin", 1, 2)]
    parts = storage.read_many(spans)
    assert (parts[0], type(parts[1]), parts[2]) == (b"abc", FileNotFoundError, b"23")
    storage.remove([f"{folder}/b.bin"])
    assert not storage.exists(f"{folder}/b.bin")


def test_one_call_reads_parts_of_files_on_disk_and_in_a_store(bucket: str, tmp_path: Path) -> None:
    for uri in (f"{bucket}/x", str(tmp_path / "x")):
        storage.write_bytes(uri, uri.encode())
    uris = [f"{bucket}/x", str(tmp_path / "x"), f"{bucket}/x"]
    assert storage.read_many([Span(uri) for uri in uris]) == [uri.encode() for uri in uris]


def test_paths_are_normalized() -> None:
    assert storage.normalize("s3://bucket//a/../b/") == "s3://bucket/b"
    assert storage.normalize("s3://bucket/") == "s3://bucket"
    assert storage.normalize("gcs://bucket/a/") == "gs://bucket/a"
    assert storage.normalize("abfss://box@account.dfs.core.windows.net//a") == (
        "az://box@account.dfs.core.windows.net/a"
    )
    assert storage.normalize("x/../y/") == os.path.join(os.getcwd(), "y")


def test_a_folder_contains_itself_and_its_files_even_through_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert storage.contains(str(tmp_path / "a"), str(tmp_path / "link" / "b"))
    assert not storage.contains(str(tmp_path / "a"), str(tmp_path / "ab"))
    assert storage.contains("s3://bucket/a", "s3://bucket/a/b")
    assert not storage.contains("s3://bucket/a", "s3://bucket/ab")


@pytest.mark.parametrize("part", ["/etc/passwd", "/", "//x"])
def test_a_joined_path_never_leaves_its_folder_for_the_root(part: str) -> None:
    for parts in ([part], ["below", part], [part, "x"]):
        with pytest.raises(StriateError, match="is not a path below /data/out"):
            storage.join("/data/out", *parts)
    assert storage.join("/data/out", "a", "b/c") == "/data/out/a/b/c"
