"""The decoding work is computed before decoding; files that repeat, pad or split their data too much are refused."""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.filter.costly_pictures import (
    commented_gif,
    layered_heif,
    many_scans,
    progressive_jpeg,
    run_length_bmp,
    striped_tiff,
    thin_png,
)
from library.errors import BadPicture
from library.imaging import codec
from library.imaging.codec.boxes import av1_frames, heif_work_px
from library.imaging.codec.jpeg2000 import jpeg2000_work_px
from tests.picture_examples import encoded, ingest, pil_bytes, scene, tiff_bytes, with_tiff_tag, write_files

LIMITS = codec.Limits(max_pixels=2**20)


def reason_of(data: bytes, limits: codec.Limits = LIMITS) -> str:
    with pytest.raises(BadPicture) as raised:
        codec.probe(data, limits)
    return raised.value.reason


# -- JPEG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refining", [False, True])
def test_a_jpeg_may_have_as_many_scans_as_the_work_limit_allows(refining: bool) -> None:
    def jpeg(scans: int) -> bytes:
        return progressive_jpeg(1000, 1000, many_scans(scans, refining))

    def work_px(scans: int) -> int:
        return codec.probe(jpeg(scans), None).work_px

    most = bisect_right(range(1000), LIMITS.max_work_px, key=work_px) - 1
    assert most > 30
    codec.probe(jpeg(most), LIMITS)
    assert reason_of(jpeg(most + 1)) == "too_much_work"


def test_a_jpeg_with_too_many_scans_is_refused_before_decoding() -> None:
    attack = progressive_jpeg(8000, 8000, many_scans(19_000))
    assert len(attack) < 2_500_000
    assert codec.decode(progressive_jpeg(800, 800, many_scans(14, refining=True))).shape == (800, 800, 1)
    assert reason_of(attack, codec.DEFAULT_LIMITS) == "too_much_work"
    # Half the file is refused for its work too, where the decoder would report a truncated file.
    assert reason_of(attack[: len(attack) // 2], codec.DEFAULT_LIMITS) == "too_much_work"


def test_ingest_rejects_a_jpeg_with_too_many_scans(tmp_path: Path) -> None:
    pictures = {"a/attack.jpg": progressive_jpeg(8000, 8000, many_scans(19_000)), "a/good.jpg": encoded("jpeg")}
    manifest = ingest(write_files(tmp_path / "source", pictures), tmp_path / "made", verify=True)
    assert (manifest.tally.rows_out, manifest.tally.rejected) == (1, {"too_much_work": 1})


def test_scans_and_segments_are_limited_even_in_a_small_jpeg() -> None:
    assert reason_of(progressive_jpeg(8, 8, many_scans(25_000))) == "too_much_work"
    jpeg = pil_bytes(Image.fromarray(scene()), "jpeg")
    assert codec.probe(jpeg[:2] + b"\xff\xfe\0\2" * 500 + jpeg[2:], LIMITS).width == 32
    assert reason_of(jpeg[:2] + b"\xff\xfe\0\2" * 25_000 + jpeg[2:]) == "too_much_work"
    assert codec.probe(jpeg[:2] + b"\xff" * 2**20 + jpeg[2:], LIMITS).width == 32


def test_an_invalid_scan_never_reduces_the_work() -> None:
    scans = many_scans(20)
    whole = codec.probe(progressive_jpeg(1000, 1000, scans), None)
    turned = codec.probe(progressive_jpeg(1000, 1000, [*scans, *[((1,), 63, 1, 1, 0)] * 100]), None)
    assert turned.work_px > whole.work_px


def test_repeated_scans_of_a_component_count_in_sequential_files() -> None:
    """A sequential file may repeat a scan of each component any number of times."""
    scan = ((1,), 0, 63, 0, 0)
    works = []
    for scans in (1, 3, 300):
        data = progressive_jpeg(1000, 1000, [((1,), 0, 0, 0, 0), *[scan] * scans], components=3)
        works.append(codec.probe(data.replace(b"\xff\xc2", b"\xff\xc1"), None).work_px)
    assert works[1] > works[0]
    assert works[2] > LIMITS.max_work_px


def test_ordinary_jpeg_photos_are_little_work() -> None:
    photo = Image.fromarray(scene(300, 400))
    for options in ({}, {"progressive": True}, {"quality": 98, "subsampling": 0, "progressive": True}):
        header = codec.probe(pil_bytes(photo, "jpeg", **options))
        assert 300 * 400 <= header.work_px < 7 * 300 * 400


def test_the_scans_of_a_thumbnail_in_a_jpeg_do_not_count() -> None:
    plain = pil_bytes(Image.fromarray(scene()), "jpeg", progressive=True)
    thumbnail = progressive_jpeg(8, 8, many_scans(2000))[:60_000]
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    work_px = codec.probe(plain, LIMITS).work_px
    assert codec.probe(plain[:2] + segment + plain[2:], LIMITS).work_px == work_px
    assert codec.probe(plain + thumbnail, LIMITS).work_px == work_px
    assert np.array_equal(codec.decode(plain[:2] + segment + plain[2:]), codec.decode(plain))


def test_large_photos_and_satellite_tiles_are_accepted() -> None:
    """A Sentinel-2 tile, a panorama, and 100 million pixels in 20 scans."""
    for width, height, scans in ((10_980, 10_980, 0), (26_000, 5_000, 10), (11_500, 8_700, 20)):
        codec.probe(progressive_jpeg(width, height, many_scans(scans, refining=True)))


# -- the other formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interlaced", [False, True])
def test_the_rows_of_a_one_column_png_are_limited(interlaced: bool) -> None:
    decoded = codec.decode(thin_png(5000, interlaced))
    assert decoded.shape == (5000, 1 + interlaced, 1)
    assert codec.probe(thin_png(5000, interlaced)).work_px > 10 * 5000, "each row has a fixed cost"
    codec.probe(thin_png(1_000_000, interlaced))
    assert reason_of(thin_png(1_000_001, interlaced), codec.DEFAULT_LIMITS) == "too_large"
    rows = 450_000 if interlaced else 900_000
    assert reason_of(thin_png(rows, interlaced)[:200], LIMITS) == "too_much_work", "before it is decoded"


@pytest.mark.parametrize("kind", ["bmp", "npy", "tiff", "gif", "webp", "png"])
def test_the_side_limit_holds_for_every_format(kind: str) -> None:
    picture = encoded(kind, 24, 32)
    codec.probe(picture, codec.Limits(max_side_px=32))
    assert reason_of(picture, codec.Limits(max_side_px=31)) == "too_large"


def test_a_tiff_may_have_as_many_strips_as_the_work_limit_allows() -> None:
    strip = zlib.compress(b"\x07")
    assert np.array_equal(codec.decode(striped_tiff(1, 50, strip)), np.full((50, 1, 1), 7))
    most = LIMITS.max_work_px // (5000 + 2)
    codec.probe(striped_tiff(1, most, strip), LIMITS)
    assert reason_of(striped_tiff(1, most + 1, strip), LIMITS) == "too_much_work"
    # The contents of the strips do not matter.
    assert reason_of(striped_tiff(1, most + 1, b"\xff"), LIMITS) == "too_much_work"
    assert reason_of(striped_tiff(1, 300_000, strip), codec.DEFAULT_LIMITS) == "too_much_work"


def test_a_tile_larger_than_its_tiff_counts_whole() -> None:
    tiles = tiff_bytes(scene(32, 32), photometric="rgb", tile=(16, 16), compression="zlib")
    padded = with_tiff_tag(with_tiff_tag(tiles, 322, 4096), 323, 4080)
    assert codec.probe(padded, None).work_px > 4096 * 4080


def test_the_scans_of_a_jpeg_inside_a_tiff_are_counted() -> None:
    def tiff(scans: int) -> bytes:
        return striped_tiff(1000, 1, progressive_jpeg(1000, 1000, many_scans(scans, refining=True)), 7, rows=1000)

    assert codec.decode(tiff(14)).shape == (1000, 1000, 1)
    codec.probe(tiff(14), LIMITS)
    assert reason_of(tiff(500)) == "too_much_work"


def test_an_embedded_picture_larger_than_its_tile_counts_whole() -> None:
    for kind, compression in (("png", 34933), ("webp", 50001), ("jpeg2000", 34712)):
        small = striped_tiff(8, 1, pil_bytes(Image.new("RGB", (8, 8)), kind), compression, rows=8)
        large = striped_tiff(8, 1, pil_bytes(Image.new("RGB", (2000, 900)), kind), compression, rows=8)
        assert codec.probe(small, None).work_px < 20_000
        assert codec.probe(large, None).work_px > 1_800_000


def test_jpeg_tiles_that_share_their_bytes_are_read_once() -> None:
    tile = encoded("jpeg", 16, 16)
    alike, overlapping = (_tiff_of_one_jpeg(tile + bytes(10**6), shift) for shift in (0, 1))
    assert codec.probe(alike).width == 160
    assert reason_of(overlapping) == "too_much_work", "each tile extends to the end of the file"


def _tiff_of_one_jpeg(content: bytes, shift: int) -> bytes:
    """10 x 10 tiles of 16 x 16 pixels that all start with the same JPEG, each `shift` bytes shorter than the last."""
    number, tags = 100, 11
    bits = 8 + 2 + 12 * tags + 4
    offsets = bits + 8
    counts = offsets + 4 * number
    start = counts + 4 * number
    values = {
        256: 160,
        257: 160,
        258: bits,
        259: 7,
        262: 6,
        277: 3,
        284: 1,
        322: 16,
        323: 16,
        324: offsets,
        325: counts,
    }
    repeats = {258: 3, 324: number, 325: number}
    entries = [struct.pack("<HHII", tag, 3 if tag == 258 else 4, repeats.get(tag, 1), values[tag]) for tag in values]
    header = b"II*\0" + struct.pack("<IH", 8, tags) + b"".join(entries) + bytes(4) + struct.pack("<4H", 8, 8, 8, 0)
    sizes = [len(content) - shift * tile for tile in range(number)]
    return header + struct.pack("<I", start) * number + struct.pack(f"<{number}I", *sizes) + content


def test_a_tiff_codec_of_unknown_cost_is_unsupported() -> None:
    with pytest.raises(BadPicture, match="compressed as JPEGXL") as raised:
        codec.probe(striped_tiff(8, 1, b"\xff\x0a", 50002, rows=8))
    assert raised.value.reason == "unsupported"


def test_the_run_lengths_of_a_bmp_are_limited() -> None:
    runs = (b"\1\5" * 4 + b"\0\0") * 4
    assert codec.decode(run_length_bmp(4, 4, runs)).shape == (4, 4, 3)
    codec.probe(run_length_bmp(700, 700, b""), LIMITS)
    assert reason_of(run_length_bmp(1000, 1000, b"")) == "too_much_work"
    assert reason_of(run_length_bmp(8, 8, b"\0\2\0\0" * 100_000)) == "too_much_work", "runs that make no pixel"


def test_the_blocks_before_a_gifs_first_frame_are_limited() -> None:
    assert codec.decode(commented_gif(90_000)).shape[:2] == (1, 1)
    assert reason_of(commented_gif(110_000)) == "too_much_work"
    assert reason_of(commented_gif(110_000)[:200_100]) == "too_much_work"


def test_jpeg_2000_packets_are_counted_before_decoding() -> None:
    plain = pil_bytes(Image.new("RGB", (500, 400)), "jpeg2000")
    assert 200_000 <= jpeg2000_work_px(plain) < 220_000
    at = plain.index(b"\xff\x52")
    layers = plain[: at + 6] + b"\xff\xff" + plain[at + 8 :]
    assert jpeg2000_work_px(layers) > LIMITS.max_work_px
    tiles = pil_bytes(Image.new("RGB", (500, 400)), "jpeg2000", tile_size=(8, 8))
    assert jpeg2000_work_px(tiles) > 5 * jpeg2000_work_px(plain)


def test_a_heif_picture_counts_each_time_it_is_used() -> None:
    one, many = (heif_work_px(layered_heif(b"grid", parts, 4000, 3000)) for parts in (1, 200))
    assert 2 <= one / (3 * 4000 * 3000) < 2.1, "the picture and its one part"
    assert many > 200 * 4000 * 3000
    picture = pil_bytes(Image.new("RGB", (64, 64)), "avif", speed=10)
    assert codec.probe(picture).work_px >= 64 * 64
    assert heif_work_px(layered_heif(b"iovl", 300, 500, 500, layers=6)) > 10**15, "layers of layers"


def test_av1_frames_that_are_not_shown_count() -> None:
    data = pil_bytes(Image.new("RGB", (500, 500)), "avif", speed=10)
    start = data.index(b"mdat") + 4
    coded = data[start:]
    assert av1_frames(coded, iter(range(100))) == 1
    # The frame's units repeated, as if they belonged to frames that are not shown.
    assert av1_frames(coded * 30, iter(range(100))) == 30


def test_an_avif_photo_with_alpha_is_little_work() -> None:
    pictures = (Image.new(mode, (2200, 2100), (90, 120, 30, 99)[: len(mode)]) for mode in ("RGB", "RGBA"))
    plain, alpha = (heif_work_px(pil_bytes(picture, "avif", speed=10)) for picture in pictures)
    assert 1 <= plain / (3 * 2100 * 2200) < 1.1
    assert 2 <= alpha / (3 * 2100 * 2200) < 2.1
