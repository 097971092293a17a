import gzip
import io
import random
import struct
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from library.errors import StriateError, UsageError
from library.imaging import codec
from library.sources import list_source, read_pictures
from library.sources.archives import gzips
from tests.source_examples import (
    assert_reads_back,
    labels,
    picture,
    read_all,
    rows,
    shared,
    tar_bytes,
    write_tar,
    write_tree,
    write_zip,
)

FILES = {"pets/cat/a.jpg": picture(1), "pets/cat/b.jpg": picture(2), "pets/dog/c.jpg": picture(3)}
LABELS = {"pets/cat/a.jpg": "cat", "pets/cat/b.jpg": "cat", "pets/dog/c.jpg": "dog"}


@pytest.mark.parametrize("name", ["pets.tar", "pets.tar.gz", "pets.tgz", "pets.zip"])
def test_an_archive_has_the_pictures_and_labels_of_its_folder(tmp_path: Path, name: str) -> None:
    write = write_zip if name.endswith("zip") else write_tar
    listing = assert_reads_back(write(tmp_path / name, FILES), FILES)
    assert labels(listing) == LABELS
    assert listing.kind == ("zip" if name.endswith("zip") else "tar")


def test_the_type_of_an_archive_is_decided_by_its_content(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tgz", FILES).rename(tmp_path / "a.tar")
    assert_reads_back(tmp_path / "a.tar", FILES)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_unicode_names_in_a_tar_are_read(tmp_path: Path, tar_format: int) -> None:
    files = {"ü/" + "n" * 220 + ".jpg": picture(1), "./猫.jpg": picture(2)}
    path = write_tar(tmp_path / "a.tar", files, format=tar_format)
    assert_reads_back(path, {"ü/" + "n" * 220 + ".jpg": picture(1), "猫.jpg": picture(2)})


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_a_member_whose_name_leads_outside_is_a_reject_with_its_bytes(tmp_path: Path, name: str) -> None:
    files = {"../evil.jpg": picture(1), "/abs.jpg": picture(2), "c/../../x.jpg": picture(3), "ok.jpg": picture(4)}
    reads = read_all(list_source(str((write_zip if name.endswith("zip") else write_tar)(tmp_path / name, files))))
    assert {key for key, read in reads.items() if read.problem and read.problem.reason == "unsafe_name"} == {
        "../evil.jpg",
        "/abs.jpg",
        "c/../../x.jpg",
    }
    assert {key: read.data for key, read in reads.items()} == files
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_links_devices_and_hidden_members_of_a_tar_are_skipped_and_counted(tmp_path: Path) -> None:
    out = io.BytesIO(tar_bytes({"a.jpg": picture(1), "__MACOSX/a.jpg": b"x", ".x.jpg": b"x", "d/Thumbs.db": b"x"}))
    with tarfile.open(fileobj=out, mode="a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"member{kind!r}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    listing = assert_reads_back(tmp_path / "a.tar", {"a.jpg": picture(1)})
    assert listing.skipped == Counter(system=2, hidden=1, link=2, special=2)


def test_a_link_in_a_zip_is_skipped(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", picture(1))
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.mkdir("folder")
    listing = assert_reads_back(tmp_path / "a.zip", {"a.jpg": picture(1)})
    assert listing.skipped == Counter(link=1)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_the_last_of_repeated_members_counts_and_the_others_are_rejects(tmp_path: Path, name: str) -> None:
    first, last = (
        {"a.jpg": picture(1), "b.jpg": picture(2), "a.txt": b"old"},
        {"./a.jpg": picture(3), "./a.txt": b"new"},
    )
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, data in [*first.items(), *last.items()]:
                archive.writestr(member, data)
    else:
        write_tar(tmp_path / name, [*first.items(), *last.items()])
    listing = list_source(str(tmp_path / name))
    end = ".jpg" if name.endswith("zip") else ""  # with texts a tar is WebDataset
    assert listing.index["key"].to_pylist() == [f"a{end}", f"a{end}", f"b{end}"]
    reads = list(read_pictures(listing.kind, listing.index, listing.gzip_indexes))
    by_data = {read.data: (listing.index["extra.caption"][read.row].as_py(), read.problem) for read in reads}
    caption, problem = by_data[picture(1)]
    assert str(problem) == "duplicate_key: the archive has 'a.jpg' again; the last one is used"
    assert (caption, by_data[picture(3)], by_data[picture(2)]) == (None, ("new", None), (None, None))
    assert listing.skipped == Counter(repeated=1)


@pytest.mark.parametrize("keep", [1_300, 2_600, 3_000, -1_024, -10_240])
def test_a_truncated_tar_is_an_error_that_names_the_last_member(tmp_path: Path, keep: int) -> None:
    data = tar_bytes({f"{name}.jpg": picture(number) for number, name in enumerate("abcdef")})
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    path = tmp_path / "a.tar"
    path.write_bytes(data[:keep] if keep > 0 else data[:end])
    with pytest.raises(StriateError, match=r"a\.tar .*(ends inside the member|after the member) '[a-f]\.jpg'"):
        list_source(str(path))


def test_a_tar_with_a_damaged_header_in_the_middle_is_an_error(tmp_path: Path) -> None:
    data = bytearray(tar_bytes({"a.jpg": b"x" * 512, "b.jpg": b"y", "c.jpg": b"z"}))
    data[1024] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(
        StriateError, match=r"damaged or truncated after the member 'a.jpg': what follows is not a header"
    ):
        list_source(str(tmp_path / "a.tar"))


def test_a_tar_header_with_a_negative_size_is_an_error_not_a_loop(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) * 4 + bytes(1024))
    with pytest.raises(StriateError, match="negative size"):
        list_source(str(tmp_path / "a.tar"))


def test_a_tar_header_that_claims_gigabytes_of_name_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**33
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(StriateError, match="a header of 8,589,934,592 bytes"):
        list_source(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("cut", [3, 9, 4_000])
def test_a_truncated_gzip_is_an_error(tmp_path: Path, cut: int) -> None:
    noise = random.Random(0).randbytes(3_000)
    path = write_tar(tmp_path / "a.tar.gz", {"a.jpg": noise, "b.jpg": noise[::-1]})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        StriateError, match=r"a\.tar\.gz ends before its gzip stream does: it is truncated.*'[ab]\.jpg'"
    ):
        list_source(str(path))


def test_a_gzip_with_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", {"a.jpg": random.Random(0).randbytes(5_000)})
    data = bytearray(path.read_bytes())
    data[2_500] ^= 1
    path.write_bytes(data)
    with pytest.raises(StriateError, match="is damaged"):
        list_source(str(path))


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("bomb.jpg")
    header.size = 3 * 2**30
    zeros = gzip.compress(bytes(2**26), 9)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(header.tobuf()) + zeros * 48)
    with pytest.raises(StriateError, match="refused: it expands more than 200 times"):
        list_source(str(tmp_path / "a.tar.gz"))


def test_a_member_over_the_limit_is_marked_and_not_read(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("huge.tif")
    huge.size = 600 * 2**20
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(tar_bytes({"a.jpg": picture(1)}).rstrip(b"\0").ljust(1536, b"\0")[:1536])
        file.write(huge.tobuf())
        file.truncate(file.tell() + huge.size + 1024)
    reads = read_all(list_source(str(tmp_path / "a.tar")))
    assert reads["a.jpg"].data == picture(1)
    assert reads["huge.tif"].data is None
    assert str(reads["huge.tif"].problem) == "too_large: 629145600 bytes; the limit is 536,870,912"


def test_a_multi_member_gzip_can_be_read_at_any_place(tmp_path: Path) -> None:
    files = {f"{number:02}.jpg": random.Random(number).randbytes(200_000) for number in range(60)}
    data = tar_bytes(files)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data[:5_000_000], 1) + gzip.compress(data[5_000_000:], 1))
    assert_reads_back(tmp_path / "a.tar.gz", files)


def test_neighbours_in_a_large_gzip_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number:02}.jpg": random.Random(number).randbytes(200_000) for number in range(60)}
    path = write_tar(tmp_path / "a.tar.gz", files)
    assert set(list_source(str(path)).index.column("block").to_pylist()) == {None}
    monkeypatch.setattr(gzips, "_ANY_ORDER_BYTES", 10**7)
    assert set(list_source(str(path)).index.column("block").to_pylist()) == {0, 1, 2}


def test_gzip_indexes_are_plain_bytes_that_work_in_any_process(tmp_path: Path) -> None:
    listing = list_source(str(write_tar(tmp_path / "a.tar.gz", FILES)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, listing.index.schema) as writer:
        writer.write_table(listing.index)
    table = pa.ipc.open_stream(sink.getvalue()).read_all().slice(1, 1)
    (read,) = read_pictures(listing.kind, table, dict(listing.gzip_indexes))
    assert (read.row, read.data) == (0, FILES["pets/cat/b.jpg"])


@pytest.mark.parametrize("name", ["a.tar.xz", "a.tar.bz2"])
def test_other_compressions_are_refused_with_a_command_to_convert(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / name, f"w:{name.rpartition('.')[2]}") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(UsageError, match=r"(xzcat|bzcat) IN \| gzip -1 > OUT\.tar\.gz"):
        list_source(str(tmp_path / name))


def test_a_folder_of_archives_is_one_source_with_the_archive_in_its_keys(tmp_path: Path) -> None:
    write_tar(tmp_path / "cat.tar", {"1.jpg": picture(1)})
    write_tar(tmp_path / "dog.tar.gz", {"1.jpg": picture(2)})
    write_zip(tmp_path / "owl.zip", {"1.jpg": picture(3)})
    write_tree(tmp_path, {"README.md": "three classes"})
    expected = {"cat.tar/1.jpg": picture(1), "dog.tar.gz/1.jpg": picture(2), "owl.zip/1.jpg": picture(3)}
    listing = assert_reads_back(tmp_path, expected)
    assert list(labels(listing).values()) == ["cat", "dog", "owl"]
    assert listing.skipped == Counter(beside=1)


def test_archives_named_after_splits_are_splits(tmp_path: Path) -> None:
    for split, number in (("train", 1), ("val", 2)):
        write_tar(tmp_path / f"{split}.tar", {"cat/1.jpg": picture(number), "dog/2.jpg": picture(number)})
    reads = rows(list_source(str(tmp_path)))
    assert {key: (row["split"], row["label"]) for key, row in reads.items()} == {
        "train.tar/cat/1.jpg": ("train", "cat"),
        "train.tar/dog/2.jpg": ("train", "dog"),
        "val.tar/cat/1.jpg": ("val", "cat"),
        "val.tar/dog/2.jpg": ("val", "dog"),
    }


def test_numbered_archives_are_not_classes(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"part-{number:05}.tar", {f"{number}.jpg": picture(number)})
    assert set(labels(list_source(str(tmp_path))).values()) == {None}


def test_parquet_and_archives_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.parquet": b"", "b.tar": b""})
    with pytest.raises(UsageError, match="holds both Parquet files and archives"):
        list_source(str(tmp_path))


def test_zip_members_with_a_wrong_checksum_or_size_are_rejected(tmp_path: Path) -> None:
    files = {f"{name}.jpg": picture(number) for number, name in enumerate("abcd")}
    path = write_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.find(picture(1)) + 300] ^= 0xFF
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[entries[2] + 24 : entries[2] + 28] = struct.pack("<L", 10)  # a wrong unpacked size
    path.write_bytes(data)
    reads = read_all(list_source(str(path)))
    assert {key: read.problem.detail for key, read in reads.items() if read.problem} == {
        "b.jpg": "the zip member's checksum is wrong",
        "c.jpg": "the zip member holds more than the 10 bytes it declares",
    }
    assert reads["b.jpg"].data is not None


def test_a_zip_member_never_unpacks_beyond_its_declared_size(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(50_000_000)})
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 1000)
    path.write_bytes(data)
    read = read_all(list_source(str(path)))["a.jpg"]
    assert read.problem is not None
    assert read.problem.reason == "damaged"
    assert read.data == bytes(1000)


def test_encrypted_and_unsupported_zip_members_are_rejects_with_advice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", picture(1))
        archive.writestr("b.jpg", picture(2), zipfile.ZIP_LZMA)
        archive.writestr("c.jpg", picture(3))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    last = data.rfind(b"PK\x01\x02")
    data[last + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    reads = read_all(list_source(str(tmp_path / "a.zip")))
    problems = {key: str(read.problem) for key, read in reads.items() if read.problem}
    assert problems["b.jpg"].startswith("unsupported: zip compression method 14")
    assert problems["c.jpg"].startswith("encrypted: the zip member needs a password")
    assert reads["a.jpg"].data == picture(1)


def test_a_zip_whose_members_share_bytes_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(10**6), "b.jpg": bytes(10**6)})
    data = bytearray(path.read_bytes())
    second = data.rfind(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<L", 0)  # both point to the first member's data
    path.write_bytes(data)
    with pytest.raises(StriateError, match="refused: the member at byte 0 overlaps the next"):
        list_source(str(path))


def test_a_zip_bomb_without_overlap_is_refused_by_its_ratio(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {f"{number}.jpg": bytes(2**20) for number in range(8)})
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 24 : at + 28] = struct.pack("<L", 2**28)
        at = data.find(b"PK\x01\x02", at + 1)
    path.write_bytes(data)
    with pytest.raises(StriateError, match="refused: it expands more than 200 times"):
        list_source(str(path))


@pytest.mark.parametrize("prefix", [b"", b"#!/bin/sh\n"])
def test_zip64_with_or_without_something_before_it_is_read(
    tmp_path: Path, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)  # zipfile writes the zip64 directory above it
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3):
            with archive.open(f"{number}.jpg", "w", force_zip64=True) as member:
                member.write(picture(number))
        archive.comment = b"a comment that ends PK\x05 like this"
    data = (tmp_path / "a.zip").read_bytes()
    assert b"PK\x06\x06" in data
    (tmp_path / "a.zip").write_bytes(prefix + data)
    assert_reads_back(tmp_path / "a.zip", {f"{number}.jpg": picture(number) for number in range(3)})


def test_names_in_a_zip_without_a_flag_are_utf8_or_code_page_437(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"aa.jpg": picture(1), "bb.jpg": picture(2)})
    path.write_bytes(path.read_bytes().replace(b"aa.jpg", b"\xc3\xbc.jpg").replace(b"bb.jpg", b"\x81x.jpg"))
    assert_reads_back(path, {"ü.jpg": picture(1), "üx.jpg": picture(2)})


def test_a_truncated_zip_is_an_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FILES)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StriateError, match="has no zip directory at its end: it is truncated"):
        list_source(str(path))


def test_a_file_of_an_unknown_type_is_an_error_with_the_supported_ones(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.h5": b"\x89HDF\r\n\x1a\n", "b.xyz": b"hello world", "c.dat": b""})
    for name, message in (("a.h5", "an HDF5 file"), ("b.xyz", "of an unsupported type"), ("c.dat", "an empty file")):
        with pytest.raises(UsageError, match=f"{message}.*a folder of pictures"):
            list_source(str(tmp_path / name))


def test_the_spacing_of_a_gzip_index_grows_with_the_file() -> None:
    assert gzips.spacing(10**6) == 4 * 2**20
    assert gzips.spacing(10**12) == 32 * 2**20


def test_cifar_as_jpeg_in_a_tar_gz_has_its_splits_and_classes() -> None:
    listing = list_source(shared("cifar10.tar.gz"))
    assert listing.index.num_rows == 60_000
    assert Counter(listing.index.column("split").to_pylist()) == Counter(train=50_000, test=10_000)
    assert set(Counter(listing.index.column("label").to_pylist()).values()) == {6_000}
    some = listing.index.take(random.Random(1).sample(range(60_000), 300))
    reads = list(read_pictures(listing.kind, some, listing.gzip_indexes))
    assert len(reads) == 300
    assert all(codec.probe(read.data or b"").width == 32 for read in reads)


def test_photos_in_a_tar_can_be_decoded() -> None:
    listing = list_source(shared("photos-500.tar"))
    some = listing.index.slice(100, 40)
    assert len(set(listing.index.column("label").to_pylist())) == 500
    for read in read_pictures(listing.kind, some, listing.gzip_indexes):
        assert codec.decode(read.data or b"").shape[2] in (1, 3)


@pytest.mark.parametrize("field", ["size", "compressed", "offset"])
def test_a_zip64_number_beyond_63_bits_is_damage(tmp_path: Path, field: str) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.jpg": picture(1)}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    at = data.rfind(b"PK\x01\x02")
    entry = bytearray(data[at : data.rfind(b"PK\x05\x06")])
    place = {"compressed": 20, "size": 24, "offset": 42}[field]
    entry[place : place + 4] = b"\xff" * 4
    entry[30:32] = struct.pack("<H", 12)
    entry += struct.pack("<2HQ", 1, 8, 2**63 + 5)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), at, 0)
    path.write_bytes(data[:at] + entry + end)
    with pytest.raises(StriateError, match="is refused: it expands" if field == "size" else "is damaged: it has"):
        list_source(str(path))


def test_a_zip64_directory_offset_beyond_63_bits_is_damage(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.jpg": picture(1)})
    data = path.read_bytes()
    end = data.rfind(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 2**63 + 5, 1)
    path.write_bytes(data[:end] + locator + data[end:])
    with pytest.raises(StriateError, match="is damaged"):
        list_source(str(path))


@pytest.mark.parametrize("system", [0, 3])
def test_backslashes_in_a_zip_are_folders_where_no_name_has_a_slash(tmp_path: Path, system: int) -> None:
    names = ["photos\\cat\\a.jpg", "photos\\dog\\b.jpg", "photos\\..\\..\\evil.jpg"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number, name in enumerate(names):
            member = zipfile.ZipInfo("x")
            member.filename, member.create_system = name, system
            archive.writestr(member, picture(number))
    reads = rows(list_source(str(tmp_path / "a.zip")))
    assert reads["photos/cat/a.jpg"]["label"] == "cat"
    assert reads["photos/dog/b.jpg"]["label"] == "dog"
    assert reads["photos/../../evil.jpg"]["problem"].startswith("unsafe_name: ")
