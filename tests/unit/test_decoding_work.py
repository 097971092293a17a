"""How much work a picture is, counted before it is decoded: what repeats, pads or splits without end is refused."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import pytest
from picture_examples import pil_bytes, scene
from PIL import Image

from benchmarks.worst_pictures import many_scans, progressive_jpeg
from library import codec
from library.errors import BadPicture

LIMITS = codec.Limits(max_pixels=2**20)


def reason_of(data: bytes, limits: codec.Limits = LIMITS) -> str:
    with pytest.raises(BadPicture) as raised:
        codec.probe(data, limits)
    return raised.value.reason


# -- JPEG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refining", [False, True])
def test_a_jpeg_has_as_many_scans_as_its_limit_has_room_for(refining: bool) -> None:
    def jpeg(scans: int) -> bytes:
        return progressive_jpeg(1000, 1000, many_scans(scans, refining))

    def work_px(scans: int) -> int:
        return codec.probe(jpeg(scans), None).work_px

    most = bisect_right(range(1000), LIMITS.max_work_px, key=work_px) - 1
    assert most > 30
    codec.probe(jpeg(most), LIMITS)
    assert reason_of(jpeg(most + 1)) == "too_much_work"


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded() -> None:
    attack = progressive_jpeg(8000, 8000, many_scans(19_000))
    assert len(attack) < 2_500_000
    assert codec.decode(progressive_jpeg(800, 800, many_scans(14, refining=True))).shape == (800, 800, 1)
    assert reason_of(attack, codec.DEFAULT_LIMITS) == "too_much_work"
    # Of half of it the decoder would say that it is cut off.
    assert reason_of(attack[: len(attack) // 2], codec.DEFAULT_LIMITS) == "too_much_work"


def test_scans_and_segments_are_bounded_however_small_the_jpeg() -> None:
    assert reason_of(progressive_jpeg(8, 8, many_scans(25_000))) == "too_much_work"
    jpeg = pil_bytes(Image.fromarray(scene()), "jpeg")
    assert codec.probe(jpeg[:2] + b"\xff\xfe\0\2" * 500 + jpeg[2:], LIMITS).width == 32
    assert reason_of(jpeg[:2] + b"\xff\xfe\0\2" * 25_000 + jpeg[2:]) == "too_much_work"
    assert codec.probe(jpeg[:2] + b"\xff" * 2**20 + jpeg[2:], LIMITS).width == 32


def test_a_scan_that_is_no_scan_takes_no_work_away() -> None:
    scans = many_scans(20)
    whole = codec.probe(progressive_jpeg(1000, 1000, scans), None)
    turned = codec.probe(progressive_jpeg(1000, 1000, [*scans, *[((1,), 63, 1, 1, 0)] * 100]), None)
    assert turned.work_px > whole.work_px


def test_a_scan_counts_in_files_that_repeat_components_too() -> None:
    """A sequential file may have a scan for each component, again and again."""
    scan = ((1,), 0, 63, 0, 0)
    works = []
    for scans in (1, 3, 300):
        data = progressive_jpeg(1000, 1000, [((1,), 0, 0, 0, 0), *[scan] * scans], components=3)
        works.append(codec.probe(data.replace(b"\xff\xc2", b"\xff\xc1"), None).work_px)
    assert works[1] > works[0]
    assert works[2] > LIMITS.max_work_px


def test_photos_of_any_kind_of_jpeg_are_little_work() -> None:
    photo = Image.fromarray(scene(300, 400))
    for options in ({}, {"progressive": True}, {"quality": 98, "subsampling": 0, "progressive": True}):
        header = codec.probe(pil_bytes(photo, "jpeg", **options))
        assert 300 * 400 <= header.work_px < 7 * 300 * 400


def test_a_thumbnail_in_a_jpeg_is_no_scan_of_it() -> None:
    plain = pil_bytes(Image.fromarray(scene()), "jpeg", progressive=True)
    thumbnail = progressive_jpeg(8, 8, many_scans(2000))[:60_000]
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    work_px = codec.probe(plain, LIMITS).work_px
    assert codec.probe(plain[:2] + segment + plain[2:], LIMITS).work_px == work_px
    assert codec.probe(plain + thumbnail, LIMITS).work_px == work_px
    assert np.array_equal(codec.decode(plain[:2] + segment + plain[2:]), codec.decode(plain))


def test_large_photographs_and_tiles_are_accepted() -> None:
    """A Sentinel-2 tile, a panorama, and 100 million pixels in 20 scans."""
    for width, height, scans in ((10_980, 10_980, 0), (26_000, 5_000, 10), (11_500, 8_700, 20)):
        codec.probe(progressive_jpeg(width, height, many_scans(scans, refining=True)))
