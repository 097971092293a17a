"""Repair removes stray bytes from JPEGs, and only where no pixel depends on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from library.errors import BadPicture
from library.imaging import codec
from tests.picture_examples import encoded, ingest, pil_bytes, scene, tiff_bytes, write_files

PICTURE = Image.fromarray(scene(64, 96))
JUNK = b"junk" * 8
KINDS = {
    "baseline": encoded("jpeg", 64, 96),
    "grey": encoded("jpeg", 64, 96, channels=1),
    "progressive": pil_bytes(PICTURE, "jpeg", progressive=True),
    "restarts": pil_bytes(PICTURE, "jpeg", restart_marker_blocks=4),
    "inks": pil_bytes(Image.fromarray(scene(64, 96, 4), "CMYK"), "jpeg"),
}


def with_stray(data: bytes, marker: bytes, junk: bytes = JUNK) -> bytes:
    at = data.rindex(marker)
    return data[:at] + junk + data[at:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("junk", [JUNK, bytes(40), b"\x12\xff\0\x34" * 9, JUNK + b"\xff\xff", bytes(range(255)) * 20])
def test_stray_bytes_before_the_end_marker_are_removed_exactly(kind: str, junk: bytes) -> None:
    stray = with_stray(KINDS[kind], b"\xff\xd9", junk)
    with pytest.raises(BadPicture, match="extraneous bytes"):
        codec.decode(stray)
    assert codec.repair(stray) == KINDS[kind]


def test_stray_bytes_in_several_places_are_removed() -> None:
    for kind, marker in (("progressive", b"\xff\xda"), ("restarts", b"\xff\xd3")):
        stray = with_stray(with_stray(KINDS[kind], marker), b"\xff\xd9")
        assert codec.repair(stray) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.98, 0.995])
@pytest.mark.parametrize("fill", [b"", bytes(5000), b"\xab" * 5000, b"\xff" * 50])
def test_a_truncated_file_is_not_repaired_whatever_was_appended(kind: str, fraction: float, fill: bytes) -> None:
    whole = KINDS[kind]
    cut = whole[: int(len(whole) * fraction)] + fill + b"\xff\xd9"
    repaired = codec.repair(cut)
    assert repaired is None or np.array_equal(codec.decode(repaired), codec.decode(whole))


def test_intact_and_otherwise_damaged_files_are_not_repaired() -> None:
    whole = KINDS["baseline"]
    hole = whole[: len(whole) // 2] + b"\xff\xd0" + whole[len(whole) // 2 + 40 :]
    for data in (
        whole,
        hole,
        with_stray(hole, b"\xff\xd9"),
        with_stray(whole, b"\xff\xdb"),
        encoded("png"),
        b"\xff\xd8\xff",
    ):
        assert codec.repair(data) is None


def test_ingest_rejects_stray_bytes_or_repairs_and_counts_them(tmp_path: Path) -> None:
    files = {"cat/a.jpg": KINDS["baseline"], "cat/b.jpg": with_stray(KINDS["grey"], b"\xff\xd9")}
    files["cat/c.jpg"] = KINDS["progressive"][:900]
    source = write_files(tmp_path / "source", files)
    strict = ingest(source, tmp_path / "strict", verify=True)
    assert (strict.rows, strict.tally.noted) == (1, {})
    repaired = ingest(source, tmp_path / "repaired", repair=True)
    assert (repaired.rows, repaired.tally.rejected, repaired.tally.noted) == (2, {"truncated": 1}, {"repaired": 1})
    again = ingest(tmp_path / "repaired", tmp_path / "again", verify=True)
    assert (again.rows, again.tally.rejected) == (2, {})


def test_ingest_counts_files_with_more_pages(tmp_path: Path) -> None:
    pages = pil_bytes(PICTURE, "tiff", save_all=True, append_images=[PICTURE])
    files = {"a.tif": pages, "b.tif": tiff_bytes(scene(), photometric="rgb"), "c.jpg": KINDS["grey"]}
    manifest = ingest(write_files(tmp_path / "source", files), tmp_path / "made")
    assert (manifest.rows, manifest.tally.noted) == (3, {"more_pages": 1})


def test_repairing_costs_no_more_than_one_picture_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair tries each possible place by decoding; a file may have thousands of places."""
    decoded = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return decode_jpeg(*arguments, **options)

    decode_jpeg = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    whole = KINDS["progressive"]
    last = whole.rindex(b"\xff\xda")
    # A comment full of bytes that look like scans, then stray bytes, then damage that cannot be repaired.
    comment = b"\xff\xfe\x40\x02" + b"junk\xff\xda\0\0" * 2048
    damaged = whole[:last] + comment + JUNK + whole[last:-40] + b"\xff\xd3" + whole[-38:]
    assert codec.repair(damaged) is None
    assert 400 < decoded <= 501
