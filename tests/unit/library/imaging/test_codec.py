"""Decoding whole pictures of every format and kind, and encoding them."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from library.errors import BadPicture, UsageError
from library.imaging import codec
from library.imaging.codec import Encoding
from tests.picture_examples import (
    ORIENTATION,
    encoded,
    kinds,
    orientation_exif,
    pil_bytes,
    png_bytes,
    png_chunk,
    scene,
    tiff_bytes,
)

KINDS = kinds()


# -- every kind -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_matches_the_decoded_picture(kind: str) -> None:
    header, pixels = codec.probe(KINDS[kind]), codec.decode(KINDS[kind])
    assert (header.height, header.width, header.channels) == pixels.shape
    assert header.dtype == pixels.dtype.name
    assert header.dtype in codec.DTYPES
    assert kind.startswith(header.format)
    assert pixels.flags.c_contiguous
    assert pixels.dtype.isnative


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_twice_gives_the_same_pixels(kind: str) -> None:
    assert np.array_equal(codec.decode(KINDS[kind]), codec.decode(KINDS[kind], limits=None))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("png ")])
def test_png_pixels_equal_those_of_opencv(kind: str) -> None:
    mode = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    expected = np.asarray(cv2.imdecode(np.frombuffer(KINDS[kind], np.uint8), mode))
    expected = expected[:, :, None] if expected.ndim == 2 else expected
    decoded = codec.decode(KINDS[kind])
    if "turned" in kind:
        expected = np.rot90(expected, -1)
    if "grey alpha" in kind:  # OpenCV makes grey and alpha four channels
        expected = expected[:, :, [0, 3]]
    elif expected.shape[2] >= 3:
        expected = expected[:, :, [2, 1, 0, 3][: expected.shape[2]]]
    assert np.array_equal(decoded, expected)


# -- round trips ------------------------------------------------------------------------------------------------------

LOSSLESS = {
    "png": ((1, 3, 4), ("uint8", "uint16")),
    "tiff": (range(1, 9), codec.DTYPES),
    "npy": (range(1, 9), codec.DTYPES),
}


@st.composite
def lossless(draw: st.DrawFn) -> tuple[str, np.ndarray[Any, Any]]:
    name = draw(st.sampled_from(sorted(LOSSLESS)))
    channels, dtypes = LOSSLESS[name]
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.sampled_from(channels))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(dtypes))
    if dtype == "float32":
        return name, noise.normal(0, 1e6, shape).astype(np.float32)
    return name, noise.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@settings(deadline=None)
@given(lossless())
def test_png_tiff_and_npy_keep_pixels_exactly(example: tuple[str, np.ndarray[Any, Any]]) -> None:
    name, pixels = example
    data, stored = codec.encode(pixels, Encoding(name))
    assert stored == name
    again = codec.decode(data)
    assert again.dtype == pixels.dtype
    assert np.array_equal(again, pixels)


def test_nan_and_infinity_are_stored_exactly() -> None:
    pixels = np.array([[np.nan, np.inf], [-np.inf, -0.0]], np.float32)[:, :, None]
    for name in ("tiff", "npy"):
        assert codec.decode(codec.encode(pixels, Encoding(name))[0]).tobytes() == pixels.tobytes()


@pytest.mark.parametrize("channels", [3, 4])
def test_lossless_webp_keeps_pixels_exactly_even_where_transparent(channels: int) -> None:
    pixels = scene(channels=channels)
    data = pil_bytes(Image.fromarray(pixels), "webp", lossless=True, exact=True)
    assert np.array_equal(codec.decode(data), pixels)


@pytest.mark.parametrize(
    ("name", "channels", "max_error"), [("jpeg:95", 1, 2), ("jpeg:95", 3, 8), ("webp:90", 3, 8), ("webp:90", 4, 8)]
)
def test_lossy_formats_stay_close_to_the_original(name: str, channels: int, max_error: float) -> None:
    y, x = np.mgrid[0:64, 0:96]
    pixels = np.stack([(128 + 100 * np.sin(y / (9 + band)) * np.cos(x / 17)) for band in range(channels)], -1).astype(
        np.uint8
    )
    data, stored = codec.encode(pixels, Encoding.parse(name))
    again = codec.decode(data)
    assert stored == name.split(":")[0] == codec.sniff(data)
    assert again.shape == pixels.shape
    assert np.abs(again.astype(int) - pixels).mean() < max_error


def test_a_higher_quality_takes_more_bytes() -> None:
    for name in ("jpeg", "webp"):
        sizes = [len(codec.encode(scene(), Encoding(name, quality))[0]) for quality in (1, 50, 100)]
        assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("name", ["jpeg:95", "png", "webp:90", "tiff", "npy"])
def test_the_encoded_bytes_do_not_depend_on_the_memory_layout(name: str) -> None:
    pixels = scene()
    spread = np.asfortranarray(pixels)
    frozen = pixels.copy()
    frozen.flags.writeable = False
    flipped_twice = pixels[::-1].copy()[::-1]
    first = codec.encode(pixels, Encoding.parse(name))
    assert [codec.encode(other, Encoding.parse(name)) for other in (spread, frozen, flipped_twice)] == [first] * 3


# -- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "channels", "dtype", "stored"),
    [
        ("jpeg", 3, "uint8", "jpeg"),
        ("jpeg", 1, "uint8", "jpeg"),
        ("jpeg", 4, "uint8", "png"),
        ("jpeg", 3, "uint16", "png"),
        ("jpeg", 3, "float32", "tiff"),
        ("jpeg", 5, "uint8", "tiff"),
        ("png", 4, "uint16", "png"),
        ("png", 2, "uint8", "tiff"),
        ("png", 1, "float32", "tiff"),
        ("webp", 4, "uint8", "webp"),
        ("webp", 1, "uint8", "png"),
        ("webp", 7, "uint16", "tiff"),
        ("tiff", 7, "float32", "tiff"),
        ("npy", 1, "uint8", "npy"),
        ("gif", 3, "uint8", "png"),
        ("bmp", 3, "uint8", "png"),
        ("gif", 9, "uint8", "tiff"),
    ],
)
def test_keep_uses_the_source_format_or_else_the_first_that_fits(
    source: str, channels: int, dtype: str, stored: str
) -> None:
    pixels = scene(channels=channels, dtype=dtype)
    data, name = codec.encode(pixels, codec.KEEP, source)
    assert name == stored == codec.sniff(data)
    if stored not in ("jpeg", "webp"):
        assert np.array_equal(codec.decode(data), pixels)


def test_keep_changes_the_format_if_a_side_is_too_long_for_it() -> None:
    assert codec.encode(np.zeros((1, 65_501, 3), np.uint8), codec.KEEP, "jpeg")[1] == "png"
    assert codec.encode(np.zeros((16_384, 1, 3), np.uint8), codec.KEEP, "webp")[1] == "png"
    assert codec.encode(np.zeros((1, 1_000_001, 1), np.uint8), codec.KEEP, "png")[1] == "tiff"


@pytest.mark.parametrize(
    ("name", "channels", "dtype", "message"),
    [
        ("jpeg", 4, "uint8", "jpeg holds 1 or 3 channels, not 4; add the step 'rgb', or encode as tiff or npy"),
        ("jpeg", 3, "uint16", "jpeg holds uint8, not uint16; encode as tiff or npy"),
        ("png", 2, "uint8", "png holds 1 or 3 or 4 channels, not 2"),
        ("png", 3, "float32", "png holds uint8 or uint16, not float32"),
        ("webp", 1, "uint8", "webp holds 3 or 4 channels, not 1"),
    ],
)
def test_a_picture_that_the_requested_format_cannot_hold_is_a_reject(
    name: str, channels: int, dtype: str, message: str
) -> None:
    with pytest.raises(BadPicture) as raised:
        codec.encode(scene(channels=channels, dtype=dtype), Encoding.parse(name))
    assert raised.value.reason == "cannot_encode"
    assert message in raised.value.detail


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("keep", "keep"),
        ("jpeg", "jpeg:95"),
        ("jpeg:1", "jpeg:1"),
        ("webp", "webp:90"),
        ("webp:100", "webp:100"),
        (" png ", "png"),
    ],
)
def test_an_encodings_text_is_parsed_and_formatted(text: str, parsed: str) -> None:
    assert str(Encoding.parse(text)) == parsed
    assert Encoding.parse(parsed) == Encoding.parse(text)


@pytest.mark.parametrize(
    "text", ["", "jpg", "JPEG", "jpeg:", "jpeg:-5", "jpeg:5.5", "png;", "gif", "jpeg:90:2", "jpeg:1000"]
)
def test_an_unknown_encoding_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown encoding '.*'; use keep, jpeg:95, png, webp:90, tiff or npy"):
        Encoding.parse(text)


@pytest.mark.parametrize("text", ["jpeg:0", "jpeg:101", "png:9", "keep:50", "tiff:1"])
def test_an_invalid_or_meaningless_quality_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="only jpeg and webp take a quality, from 1 to 100"):
        Encoding.parse(text)


# -- colour, depth and frames -----------------------------------------------------------------------------------------


def test_a_1_bit_picture_is_black_and_white() -> None:
    pattern = np.indices((5, 9)).sum(0) % 2 == 0
    image = Image.fromarray(pattern)
    assert image.mode == "1"
    for data in (
        pil_bytes(image, "png"),
        pil_bytes(image, "tiff"),
        pil_bytes(image, "tiff", compression="group4"),
        pil_bytes(image, "bmp"),
        tiff_bytes(~pattern, photometric="miniswhite"),
    ):
        decoded = codec.decode(data)
        assert decoded.dtype == np.uint8
        assert np.array_equal(decoded[:, :, :1], pattern[:, :, None] * np.uint8(255))


def test_4_bit_grey_is_stretched_from_black_to_white() -> None:
    row = b"\0" + bytes([0x01, 0x23, 0x45, 0xEF])
    expected = np.array([0, 1, 2, 3, 4, 5, 14, 15]) * 17
    assert codec.decode(png_bytes(8, 1, 4, 0, row))[0, :, 0].tolist() == expected.tolist()
    four_bits = tiff_bytes(np.array([[0, 1, 2, 3, 4, 5, 14, 15]], np.uint8), photometric="minisblack", bitspersample=4)
    assert codec.decode(four_bits)[0, :, 0].tolist() == expected.tolist()


def test_a_tiff_where_0_is_white_is_inverted() -> None:
    for dtype in ("uint8", "uint16"):
        pixels = scene(channels=1, dtype=dtype)
        assert np.array_equal(
            codec.decode(tiff_bytes(pixels[:, :, 0], photometric="miniswhite")), np.iinfo(dtype).max - pixels
        )


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "tiff"])
def test_a_palette_picture_has_the_colours_of_its_palette(kind: str) -> None:
    palette = Image.fromarray(scene()).quantize(16)
    assert np.array_equal(codec.decode(pil_bytes(palette, kind)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_transparent_palette_picture_has_an_alpha_channel(kind: str) -> None:
    palette = Image.fromarray(scene()).quantize(16)
    pixels = codec.decode(pil_bytes(palette, kind, transparency=3))
    clear = np.asarray(palette) == 3
    assert clear.any()
    assert np.array_equal(pixels[:, :, 3], np.where(clear, 0, 255))
    assert np.array_equal(pixels[:, :, :3][~clear], np.asarray(palette.convert("RGB"))[~clear])


def test_grey_with_alpha_has_two_channels() -> None:
    image = Image.fromarray(scene(channels=4)).convert("LA")
    assert np.array_equal(codec.decode(pil_bytes(image, "png")), np.asarray(image))


def test_all_sixteen_bits_are_kept() -> None:
    for channels in (1, 3, 4):
        pixels = scene(channels=channels, dtype="uint16")
        assert len(np.unique(pixels & 255)) > 10
        assert np.array_equal(codec.decode(encoded("png", channels=channels, dtype="uint16")), pixels)
    grey_alpha = np.arange(4 * 3 * 2).reshape(4, 3, 2) * 2713
    rows = b"".join(b"\0" + row.tobytes() for row in grey_alpha.astype(">u2"))
    assert np.array_equal(codec.decode(png_bytes(3, 4, 16, 4, rows)), grey_alpha)


@pytest.mark.parametrize("quality", [60, 95])
def test_a_cmyk_jpeg_becomes_rgb_as_in_pillow(quality: int) -> None:
    data = pil_bytes(Image.fromarray(scene(channels=4), "CMYK"), "jpeg", quality=quality)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = codec.decode(data)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= 1
    assert decoded.std() > 10


def test_white_paper_in_cmyk_is_white() -> None:
    paper = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    for kind in ("jpeg", "tiff"):
        assert codec.decode(pil_bytes(paper, kind)).min() > 250


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    data = pil_bytes(frames[0], kind, save_all=True, append_images=frames[1:])
    pixels = codec.decode(data).astype(int)
    assert pixels.shape[:2] == (10, 20)
    assert np.abs(pixels[:, :, :3] - [250, 0, 0]).max() <= 6


# -- TIFF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"bigtiff": True, "byteorder": ">"},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"compression": "zstd"},
        {"rowsperstrip": 5},
        {"tile": (16, 16), "compression": "deflate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_many_band_tiff_is_read_in_every_layout(planes: str, options: dict[str, Any], dtype: str) -> None:
    pixels = scene(37, 21, 7, dtype)
    stored = pixels if planes == "contig" else np.moveaxis(pixels, 2, 0)
    data = tiff_bytes(stored, photometric="minisblack", planarconfig=planes, **options)
    assert codec.probe(data) == codec.Header("tiff", 21, 37, 7, dtype)
    assert np.array_equal(codec.decode(data), pixels)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "float16", "float64"])
def test_other_sample_types_become_float32_with_their_values(dtype: str) -> None:
    values = (np.arange(12).reshape(3, 4) * 9 - (0 if dtype[0] == "u" else 50)).astype(dtype)
    data = tiff_bytes(values, photometric="minisblack")
    assert codec.probe(data).dtype == "float32"
    assert codec.decode(data)[:, :, 0].tolist() == values.tolist()


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_unsupported_colour_spaces_are_refused(mode: str) -> None:
    with pytest.raises(BadPicture) as raised:
        codec.decode(pil_bytes(Image.merge(mode, [Image.fromarray(scene(channels=1)[:, :, 0])] * 3), "tiff"))
    assert raised.value.reason == "unsupported"


def test_complex_samples_and_volumes_are_refused() -> None:
    for data in (
        tiff_bytes(np.ones((4, 4), np.complex64)),
        tiff_bytes(np.ones((4, 16, 16), np.uint8), photometric="minisblack", volumetric=True, tile=(4, 16, 16)),
    ):
        with pytest.raises(BadPicture) as raised:
            codec.decode(data)
        assert raised.value.reason == "unsupported"


def test_a_jpeg_inside_a_tiff_keeps_its_colours() -> None:
    y, x = np.mgrid[0:32, 0:48]
    pixels = np.stack([x * 5, y * 7, 255 - x * 5], -1).astype(np.uint8)
    again = codec.decode(tiff_bytes(pixels, photometric="rgb", compression="jpeg"))
    assert np.abs(again.astype(int) - pixels).mean() < 6


# -- orientation ------------------------------------------------------------------------------------------------------


def stored_for(orientation: int, upright: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The pixels as a camera stores them with this `orientation` (EXIF 2.3, table of tag 274)."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation].copy()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "png uint16"])
def test_every_orientation_is_decoded_upright(kind: str, orientation: int) -> None:
    upright = np.kron(scene(3, 5), np.ones((8, 8, 1))).astype(np.uint16 if "16" in kind else np.uint8)
    stored, exif = stored_for(orientation, upright), orientation_exif(orientation)
    if kind == "tiff":
        data = tiff_bytes(stored, photometric="rgb", extratags=[(ORIENTATION, 3, 1, orientation, True)])
    elif kind == "png uint16":
        rows = b"".join(b"\0" + row.tobytes() for row in stored.astype(">u2"))
        data = png_bytes(stored.shape[1], stored.shape[0], 16, 2, rows, png_chunk(b"eXIf", exif.tobytes()[6:]))
    else:
        options = {"quality": 100, "subsampling": 0} if kind == "jpeg" else {"lossless": True} if kind == "webp" else {}
        data = pil_bytes(Image.fromarray(stored), kind, exif=exif, **options)
    header, pixels = codec.probe(data), codec.decode(data)
    assert (header.width, header.height) == (40, 24)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() <= (3 if kind == "jpeg" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    pixels = scene()
    for kind in ("png", "webp"):
        data = pil_bytes(Image.fromarray(pixels), kind, exif=orientation_exif(orientation), lossless=True)
        assert np.array_equal(codec.decode(data), pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("cut", [2, 9, 13, 20, 25])
def test_a_damaged_exif_segment_is_ignored(cut: int) -> None:
    exif = orientation_exif(6).tobytes()[:cut]
    plain = encoded("jpeg")
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert np.array_equal(codec.decode(data), codec.decode(plain))


def test_the_orientation_is_read_after_other_segments_and_padding() -> None:
    data = pil_bytes(Image.fromarray(scene()), "jpeg", exif=orientation_exif(6))
    before = b"\xff\xfe\x00\x07notes\xff\xff\xff\xe1\x00\x06http"
    moved = data[:2] + before + data[2:]
    assert codec.decode(moved).shape == (32, 24, 3)


def test_the_word_exif_in_other_png_chunks_is_ignored() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in scene())
    for extra in (png_chunk(b"tEXt", b"Comment\0eXIf"), png_chunk(b"eXIf", b"MM\0*"), png_chunk(b"eXIf", b"")):
        assert np.array_equal(codec.decode(png_bytes(32, 24, 8, 2, rows, extra)), scene())


def test_header_and_pixels_both_ignore_an_xmp_orientation_in_a_png() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    rows = b"".join(b"\0" + row.tobytes() for row in scene())
    data = png_bytes(32, 24, 8, 2, rows, png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    assert (codec.probe(data).width, codec.decode(data).shape[1]) == (32, 32)


def test_photos_of_one_scene_in_every_orientation_look_the_same(shared_data: Path) -> None:
    files = [shared_data / "exif-orientation" / f"Landscape_{number}.jpg" for number in range(9)]
    decoded = [
        cv2.resize(codec.decode(file.read_bytes()), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        for file in files
    ]
    assert len({pixels.shape for pixels in decoded}) == 1
    for pixels in decoded[1:]:
        assert np.abs(pixels.astype(int) - decoded[0]).mean() < 3
    assert np.abs(decoded[0][:, ::-1].astype(int) - decoded[0]).mean() > 20, "the scene is not symmetric"


def test_a_lzw_tiff_written_by_pillow_is_read_exactly() -> None:
    pixels = scene()
    with tifffile.TiffFile(io.BytesIO(pil_bytes(Image.fromarray(pixels), "tiff", compression="tiff_lzw"))) as file:
        assert file.pages[0].compression.name == "LZW"  # type: ignore[union-attr]
    assert np.array_equal(codec.decode(pil_bytes(Image.fromarray(pixels), "tiff", compression="tiff_lzw")), pixels)


def test_a_cmyk_tiff_keeps_straight_alpha_and_premultiplied_is_refused() -> None:
    inks = scene(channels=5)
    pixels = codec.decode(tiff_bytes(inks, photometric="separated", extrasamples=("unassalpha",)))
    assert np.array_equal(pixels[:, :, 3], inks[:, :, 4])
    assert np.array_equal(pixels[:, :, :3], codec.decode(tiff_bytes(inks[:, :, :4], photometric="separated")))
    with pytest.raises(BadPicture, match="inks with 5 samples"):
        codec.probe(tiff_bytes(inks, photometric="separated", extrasamples=("assocalpha",)))


def test_decoding_a_cmyk_tiff_needs_little_more_memory_than_its_pixels() -> None:
    inks = np.broadcast_to(scene(1, 1024, 4), (1024, 1024, 4))
    data = tiff_bytes(inks, photometric="separated", compression="zlib")
    codec.decode(data)
    tracemalloc.start()
    pixels = codec.decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * inks.size
    exact = (1 - inks[0, :, :3] / 255) * (1 - inks[0, :, 3:] / 255) * 255
    assert np.array_equal(pixels, np.broadcast_to(np.rint(exact), pixels.shape))


# -- files from public bug reports ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "red", "blue"),
    [
        ("p_ztxt_big.png", [255, 0, 0], [0, 0, 255]),
        ("p_rgb_trns.png", [255, 0, 0, 0], [0, 0, 255, 255]),
        ("p_text_idat.png", [255, 0, 0, 255], [0, 0, 255, 255]),
        ("x_avif.avif", [255, 0, 1], [0, 0, 253]),
        ("t_planar_jpeg_ycc.tif", [254, 0, 0], [0, 0, 254]),
        ("t_alpha_assoc.tif", [253, 0, 0, 128], [0, 0, 253, 128]),
        ("t_grey12_miniswhite.tif", [19460], [7426]),
    ],
)
def test_pictures_from_public_bug_reports_have_the_right_colours(
    shared_data: Path, name: str, red: list[int], blue: list[int]
) -> None:
    file = shared_data.parent / "cases" / name
    if not file.is_file():
        pytest.skip(f"{file} is not on this machine")
    pixels = codec.decode(file.read_bytes()).astype(int)
    header = codec.probe(file.read_bytes())
    assert (header.height, header.width, header.channels) == pixels.shape == (48, 64, len(red))
    white, left, right = pixels[5, 5], pixels[40, 16], pixels[5, 55]
    assert white[0] == pixels[:, :, 0].max()
    assert np.abs(np.array([left, right]) - [red, blue]).max() <= 2
