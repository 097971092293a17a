"""TIFF: depths, inversion, alpha, palettes, planes and pages."""

from __future__ import annotations

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from library.errors import BadPicture
from library.imaging import codec
from tests.picture_examples import pil_bytes, scene, tiff_bytes, with_tiff_tag

BITS, PHOTOMETRIC, SAMPLE_FORMAT, COLOUR_MAP = 258, 262, 339, 320


def raw_tiff(
    size: tuple[int, int],
    bits: int,
    photometric: int,
    data: bytes,
    *,
    samples: int = 1,
    sample_format: int = 1,
    extra: dict[int, tuple[int, list[int]]] | None = None,
) -> bytes:
    """A little-endian TIFF of one uncompressed strip, tag by tag; `extra` maps a tag to its type and values."""
    width, height = size
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        BITS: (3, [bits] * samples),
        259: (3, [1]),
        PHOTOMETRIC: (3, [photometric]),
        273: (4, [8]),
        277: (3, [samples]),
        278: (4, [height]),
        279: (4, [len(data)]),
        SAMPLE_FORMAT: (3, [sample_format] * samples),
        **(extra or {}),
    }
    data += b"\0" * (len(data) % 2)
    directory = 8 + len(data)
    values_at = directory + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, kind, len(numbers), values_at + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        else:
            entries += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", directory) + data + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def packed(samples: NDArray[Any], bits: int) -> bytes:
    """Rows of samples of `bits` bits, most significant bit first; each row starts on a byte."""
    shifts = np.arange(bits - 1, -1, -1)
    rows = samples.reshape(samples.shape[0], -1).astype(np.int64)
    return np.packbits((rows[:, :, None] >> shifts & 1).reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def levels(bits: int, height: int = 3, width: int = 11) -> NDArray[Any]:
    values = np.arange(height * width).reshape(height, width) * 1237 % 2**bits
    values[0, :2] = 0, 2**bits - 1
    return values


def stretched(values: NDArray[Any], bits: int) -> NDArray[Any]:
    full = 255 if bits <= 8 else 65535
    return np.floor(values * full / (2**bits - 1) + 0.5)


# -- depths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
def test_every_depth_is_stretched_to_the_full_range(bits: int, white_is_zero: bool) -> None:
    values = levels(bits)
    data = raw_tiff((11, 3), bits, 0 if white_is_zero else 1, packed(values, bits))
    header, pixels = codec.probe(data), codec.decode(data)
    shown = 2**bits - 1 - values if white_is_zero else values
    assert header == codec.Header("tiff", 11, 3, 1, "uint8" if bits <= 8 else "uint16")
    assert np.array_equal(pixels[:, :, 0], stretched(shown, bits))
    assert {pixels.min(), pixels.max()} == {0, 255 if bits <= 8 else 65535}


@pytest.mark.parametrize("bits", [16, 17, 20, 24, 31, 32])
def test_white_is_zero_is_inverted_at_every_depth(bits: int) -> None:
    values = levels(bits)
    stored = (
        values.astype("<u2").tobytes()
        if bits == 16
        else values.astype("<u4").tobytes()
        if bits == 32
        else packed(values, bits)
    )
    pixels = codec.decode(raw_tiff((11, 3), bits, 0, stored))[:, :, 0]
    assert pixels.dtype == (np.uint16 if bits == 16 else np.float32)
    assert np.array_equal(pixels, (2**bits - 1 - values).astype(pixels.dtype))


def test_12_bit_colour_is_stretched_to_16_bits() -> None:
    values = levels(12, 4, 15).reshape(4, 5, 3)
    pixels = codec.decode(raw_tiff((5, 4), 12, 2, packed(values, 12), samples=3))
    assert np.array_equal(pixels, stretched(values, 12))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int16", "int32"])
def test_signed_and_float_samples_where_0_is_white_are_refused(dtype: str) -> None:
    data = tiff_bytes(np.ones((4, 5), dtype), photometric="minisblack")
    for read in (codec.probe, codec.decode):
        with pytest.raises(BadPicture, match=rf"unsupported: a TIFF of {dtype} where 0 is white \(MinIsWhite\)"):
            read(with_tiff_tag(data, PHOTOMETRIC, 0))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_deflate"])
def test_tiffs_written_by_pillow_are_read_as_pillow_reads_them(mode: str, compression: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(scene(channels=1, dtype="uint16")[:, :, 0])
    else:
        image = Image.fromarray(scene(channels=4)).convert(mode)
    data = pil_bytes(image, "tiff", compression=compression)
    with Image.open(io.BytesIO(data)) as opened:
        shown = opened.convert({"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode))
    pixels = codec.decode(data)
    expected = np.asarray(shown).reshape(pixels.shape)
    assert np.abs(pixels.astype(float) - expected).max() <= (1 if mode == "CMYK" else 0)


# -- colours ----------------------------------------------------------------------------------------------------------


def planar_jpeg(planes: NDArray[Any], subsampling: list[int]) -> bytes:
    strips = [imagecodecs.jpeg8_encode(np.ascontiguousarray(plane), level=100) for plane in planes]
    height, width = planes.shape[1:]
    starts = [8, 8 + len(strips[0]), 8 + len(strips[0]) + len(strips[1])]
    extra = {
        259: (3, [7]),
        273: (4, starts),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2]),
        530: (3, subsampling),
    }
    return raw_tiff((width, height), 8, 6, b"".join(strips), samples=3, extra=extra)


def test_planar_ycbcr_jpegs_in_a_tiff_become_rgb_as_in_pillow() -> None:
    colours = np.kron(np.array([[[255, 0, 0], [0, 0, 255]], [[0, 255, 0], [255, 255, 255]]]), np.ones((16, 16, 1)))
    planes = np.moveaxis(np.asarray(Image.fromarray(colours.astype(np.uint8)).convert("YCbCr")), 2, 0)
    data = planar_jpeg(planes, [1, 1])
    with Image.open(io.BytesIO(data)) as image:
        assert np.abs(codec.decode(data).astype(int) - np.asarray(image)).max() <= 1
    assert np.abs(codec.decode(data).astype(int) - colours).max() <= 2
    with pytest.raises(BadPicture, match="unsupported: a TIFF whose colours are YCBCR"):
        codec.probe(planar_jpeg(planes, [2, 2]))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
@pytest.mark.parametrize("colours", [1, 3])
def test_premultiplied_colours_are_divided_by_alpha(dtype: str, colours: int) -> None:
    opaque = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    plain = scene(channels=colours, dtype="float32").astype(np.float64) * opaque
    alpha = np.linspace(0, opaque, 32)[None, :, None] * np.ones((24, 1, 1))
    alpha = alpha if dtype == "float32" else np.rint(alpha)
    stored = np.concatenate([plain * alpha / opaque, alpha], -1)
    stored = stored.astype(dtype) if dtype == "float32" else np.rint(stored).astype(dtype)
    photometric = "rgb" if colours == 3 else "minisblack"
    data = tiff_bytes(stored, photometric=photometric, extrasamples=("assocalpha",), planarconfig="contig")
    pixels = codec.decode(data)
    assert not pixels[:, 0, :colours].any(), "fully transparent pixels become black"
    assert np.array_equal(pixels[:, :, colours], stored[:, :, colours].astype(pixels.dtype))
    # A rounding error of half a level in the stored colour grows with the division.
    error = np.abs(pixels[:, 1:, :colours] - plain[:, 1:]) * alpha[:, 1:] / opaque
    assert error.max() <= (0.51 + 0.5 if dtype[0] == "u" and dtype != "uint32" else 1e-6 * opaque)


def test_straight_alpha_is_unchanged() -> None:
    pixels = scene(channels=4)
    assert np.array_equal(codec.decode(tiff_bytes(pixels, photometric="rgb", extrasamples=("unassalpha",))), pixels)
    assert np.array_equal(codec.decode(tiff_bytes(pixels, photometric="rgb", extrasamples=("unspecified",))), pixels)


def test_only_colours_are_divided_by_alpha_not_extra_bands() -> None:
    stored = scene(channels=5)
    stored[:, :, 4] = 128
    data = tiff_bytes(stored, photometric="rgb", extrasamples=("unspecified", "assocalpha"))
    pixels = codec.decode(data)
    assert np.array_equal(pixels[:, :, 3:], stored[:, :, 3:])
    assert np.array_equal(pixels[:, :, :3], np.minimum(np.rint(stored[:, :, :3] * 255.0 / 128), 255))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("entry_bits", [8, 16])
def test_colour_maps_of_8_and_16_bits_give_their_colours(bits: int, entry_bits: int) -> None:
    colours = np.arange(3 * 2**bits).reshape(3, -1) * 37 % 256
    colours[:, -1] = 255, 10, 130
    values = levels(bits)
    stored = values.astype("<u2").tobytes() if bits == 16 else packed(values, bits)
    entries = (colours * (257 if entry_bits == 16 else 1)).reshape(-1).tolist()
    data = raw_tiff((11, 3), bits, 3, stored, extra={COLOUR_MAP: (3, entries)})
    assert np.array_equal(codec.decode(data), colours.T[values])
    if bits in (4, 8) and entry_bits == 16:
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(codec.decode(data), np.asarray(image.convert("RGB")))


def test_a_palette_keeps_alpha_and_other_extra_samples_are_refused() -> None:
    colours = np.arange(768).reshape(3, 256) * 7 % 256
    pixels = scene(channels=2)
    options: dict[int, tuple[int, list[int]]] = {COLOUR_MAP: (3, (colours * 257).reshape(-1).tolist())}
    data = raw_tiff((32, 24), 8, 3, pixels.tobytes(), samples=2, extra={**options, 338: (3, [2])})
    assert codec.probe(data).channels == 4
    assert np.array_equal(codec.decode(data)[:, :, :3], colours.T[pixels[:, :, 0]])
    assert np.array_equal(codec.decode(data)[:, :, 3], pixels[:, :, 1])
    for kind in (0, 1):
        with pytest.raises(BadPicture, match="unsupported: a TIFF of a palette with 2 samples a pixel"):
            codec.probe(raw_tiff((32, 24), 8, 3, pixels.tobytes(), samples=2, extra={**options, 338: (3, [kind])}))


# -- pages ------------------------------------------------------------------------------------------------------------


def pages(*kinds: tuple[int, int]) -> bytes:
    """A TIFF of grey pages, each given as its level and NewSubfileType."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for level, kind in kinds:
            writer.write(np.full((8, 8 + level), level, np.uint8), subfiletype=kind, metadata=None)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kinds", "level", "more"),
    [
        ([(7, 0)], 7, False),
        ([(7, 0), (8, 0), (9, 0)], 7, True),
        ([(7, 2), (8, 2)], 7, True),
        ([(7, 0), (3, 1), (2, 1)], 7, False),
        ([(7, 0), (7, 9)], 7, False),
        ([(7, 0), (3, 1), (9, 0)], 7, True),
        ([(1, 1), (7, 0)], 7, False),
        ([(1, 1)], 1, False),
    ],
)
def test_the_first_full_page_is_read_and_more_pages_are_noted(
    kinds: list[tuple[int, int]], level: int, more: bool
) -> None:
    data = pages(*kinds)
    header, pixels = codec.probe(data), codec.decode(data)
    assert (header.width, header.has_more_pages) == (8 + level, more)
    assert pixels.shape == (8, 8 + level, 1)
    assert (pixels == level).all()


def test_damage_after_the_first_page_is_ignored() -> None:
    data = pages((7, 0), (8, 0))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        second = file.pages[1].offset
    for damage in (b"\xff\xff", b"\0\0", b""):
        cut = data[:second] + damage
        assert (codec.decode(cut) == 7).all()


def test_a_camera_raw_file_is_refused_instead_of_its_thumbnail_read() -> None:
    for data in (
        raw_tiff((4, 4), 8, 1, bytes(16), extra={254: (4, [1]), 330: (4, [8])}),
        tiff_bytes(scene(), photometric="rgb", extratags=[(50706, 1, 4, (1, 4, 0, 0), True)]),
        with_tiff_tag(tiff_bytes(scene(channels=1)[:, :, 0]), PHOTOMETRIC, 32803),
    ):
        with pytest.raises(BadPicture, match="unsupported: a camera raw file; develop it to JPEG or TIFF first"):
            codec.probe(data)


# -- unsupported files ------------------------------------------------------------------------------------------------


def test_unsupported_kinds_of_tiff_are_named() -> None:
    grey = tiff_bytes(scene(channels=1)[:, :, 0], photometric="minisblack")
    for data, words in (
        (with_tiff_tag(grey, 259, 34661), "compressed as JBIG"),
        (with_tiff_tag(grey, 259, 12345), "compressed as 12345"),
        (with_tiff_tag(grey, PHOTOMETRIC, 32845), "colours are LOGLUV"),
        (with_tiff_tag(grey, PHOTOMETRIC, 777), "colours are 777"),
        (tiff_bytes(np.ones((4, 4), np.complex64)), "64 bits"),
        (raw_tiff((4, 4), 8, 2, bytes(32), samples=3, extra={BITS: (3, [5, 6, 5])}), "5, 6, 5"),
    ):
        with pytest.raises(BadPicture, match=f"unsupported: a TIFF.*({words})"):
            codec.probe(data)


@pytest.mark.filterwarnings("error")
def test_values_beyond_float32_become_infinite_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    pixels = codec.decode(tiff_bytes(np.array([[1e300, -1e300, np.nan, 1.5]]), photometric="minisblack"))
    assert pixels[0, [0, 1, 3], 0].tolist() == [np.inf, -np.inf, 1.5]
    multiplied = tiff_bytes(np.full((2, 2, 4), 1e-300), photometric="rgb", extrasamples=("assocalpha",))
    assert codec.decode(multiplied)[0, 0, :3].tolist() == [1, 1, 1]
    assert capfd.readouterr() == ("", "")
