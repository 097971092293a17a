"""PNG: chunks that make pixels, other chunks, and transparency."""

from __future__ import annotations

import logging
import struct
import zlib

import numpy as np
import pytest

from library.errors import BadPicture
from library.imaging import codec
from tests.picture_examples import orientation_exif, png_bytes, png_chunk, scene

SIZE_BY_COLOUR = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def rows_of(samples: np.ndarray) -> bytes:  # type: ignore[type-arg]
    return b"".join(b"\0" + row.tobytes() for row in samples)


def rgb(extra: bytes = b"") -> bytes:
    return png_bytes(32, 24, 8, 2, rows_of(scene()), extra)


def spoiled(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


# -- other chunks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"iCCP", b"display\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"tEXt", b"workflow\0" + b"x" * 3_000_000),
        png_chunk(b"zTXt", b"broken\0\0no zlib stream"),
        png_chunk(b"iCCP", b""),
        png_chunk(b"eXIf", b"II*\0" + b"\xff" * 300),
        png_chunk(b"gAMA", struct.pack(">I", 100_000)),
        png_chunk(b"sBIT", b"\5\6\5"),
        png_chunk(b"prVt", b"unknown"),
        png_chunk(b"PLTE", bytes(range(30))),
        spoiled(png_chunk(b"tEXt", b"comment\0wrong checksum")),
        spoiled(png_chunk(b"eXIf", orientation_exif(6).tobytes()[6:])),
        png_chunk(b"tEXt", b"a\0b") * 5000,
    ],
    ids=lambda chunk: chunk[4:17],
)
def test_a_chunk_that_makes_no_pixels_never_rejects_a_picture(chunk: bytes) -> None:
    data = rgb(chunk)
    assert codec.probe(data) == codec.Header("png", 32, 24, 3)
    assert np.array_equal(codec.decode(data), scene())
    chunk_last = data[:33] + data[33 + len(chunk) : -12] + chunk + data[-12:]
    if chunk[4:8] != b"PLTE":
        assert np.array_equal(codec.decode(chunk_last), scene())


def test_chunk_names_inside_a_png_comment_are_ignored() -> None:
    samples = np.arange(32 * 24, dtype=np.uint8).reshape(24, 32) % 4
    palette = png_chunk(b"PLTE", bytes([0, 0, 0, 250, 0, 0, 0, 250, 0, 0, 0, 250]))
    before = png_chunk(b"tEXt", b"note\0IDAT eXIf IEND")
    for extra, channels in (
        (before + palette + png_chunk(b"tRNS", b"\x80"), 4),
        (png_chunk(b"tEXt", b"note\0tRNS IDAT") + palette, 3),
    ):
        data = png_bytes(32, 24, 8, 3, rows_of(samples), extra)
        assert codec.probe(data).channels == channels == codec.decode(data).shape[2]


def test_a_png_may_have_50_000_chunks_but_not_more_than_100_000() -> None:
    assert codec.decode(rgb(png_chunk(b"tEXt", b"") * 50_000)).shape == (24, 32, 3)
    for read in (codec.probe, codec.decode):
        with pytest.raises(BadPicture, match="too_large: the PNG has more than 100,000 chunks"):
            read(rgb(png_chunk(b"tEXt", b"") * 100_001))


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND", b"tRNS"])
def test_a_wrong_checksum_in_a_pixel_chunk_is_damage(kind: bytes) -> None:
    data = bytearray(rgb(png_chunk(b"tRNS", bytes(6))))
    at = data.index(kind)
    data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 1
    with pytest.raises(BadPicture, match=f"damaged: bad checksum in the {kind.decode()} chunk"):
        codec.decode(bytes(data))


def test_an_ios_png_is_unsupported_and_named() -> None:
    data = rgb()
    for read in (codec.probe, codec.decode):
        with pytest.raises(BadPicture, match=r"unsupported: an iOS PNG \(CgBI\)"):
            read(data[:8] + png_chunk(b"CgBI", b"\x50\0\x20\2") + data[8:])


def test_an_unknown_critical_chunk_is_unsupported_and_named() -> None:
    with pytest.raises(BadPicture, match="unsupported: a PNG with an unknown critical chunk 'NEWS'"):
        codec.decode(rgb(png_chunk(b"NEWS", b"")))


@pytest.mark.parametrize(("depth", "colour"), [(8, 2), (16, 2), (16, 0), (1, 0), (8, 3), (16, 6)])
def test_a_png_with_fewer_rows_than_its_header_says_is_truncated(depth: int, colour: int) -> None:
    row = b"\0" + bytes(depth * SIZE_BY_COLOUR[colour])
    extra = png_chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    assert codec.decode(png_bytes(8, 4, depth, colour, row * 4, extra)).shape[:2] == (4, 8)
    with pytest.raises(BadPicture, match="truncated"):
        codec.decode(png_bytes(8, 4, depth, colour, row * 3, extra))


def test_libpngs_warnings_are_not_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG):
        codec.decode(png_bytes(8, 4, 8, 0, (b"\0" + bytes(8)) * 40))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


# -- transparency -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_adds_alpha_to_rgb(depth: int) -> None:
    pixels = scene(dtype=f"uint{depth}")
    colour = pixels[5, 7]
    near = pixels.copy()
    near[0, 0] = colour
    near[0, 1] = colour ^ 1
    data = png_bytes(
        32, 24, depth, 2, rows_of(near.astype(f">u{depth // 8}")), png_chunk(b"tRNS", struct.pack(">3H", *colour))
    )
    decoded = codec.decode(data)
    assert codec.probe(data) == codec.Header("png", 32, 24, 4, f"uint{depth}")
    assert np.array_equal(decoded[:, :, :3], near)
    clear = (near == colour).all(-1)
    assert clear[0, 0]
    assert not clear[0, 1]
    assert np.array_equal(decoded[:, :, 3], np.where(clear, 0, 2**depth - 1))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_level_adds_alpha_to_grey(depth: int) -> None:
    levels = np.arange(64) % 2**depth
    bits = np.unpackbits(levels.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - depth :]
    row = b"\0" + np.packbits(bits.reshape(-1)).tobytes()
    # The unused bits of the level are ignored, as the standard requires.
    data = png_bytes(64, 1, depth, 0, row, png_chunk(b"tRNS", struct.pack(">H", 1 | (0x4000 if depth < 8 else 0))))
    decoded = codec.decode(data)
    white = 2 ** max(depth, 8) - 1
    assert codec.probe(data) == codec.Header("png", 64, 1, 2, "uint16" if depth == 16 else "uint8")
    assert np.array_equal(decoded[0, :, 0], levels * (white // (2**depth - 1)))
    assert np.array_equal(decoded[0, :, 1], np.where(levels == 1, 0, white))


@pytest.mark.parametrize("length", [1, 3, 4, 9, 200])
@pytest.mark.parametrize("depth", [2, 8])
def test_a_palettes_transparency_may_be_shorter_or_longer(depth: int, length: int) -> None:
    alpha = bytes(255 - 50 * (number % 4) for number in range(length))
    extra = png_chunk(b"PLTE", bytes(range(12))) + png_chunk(b"tRNS", alpha)
    row = b"\0" + (bytes([0b00011011]) if depth == 2 else bytes(range(4)))
    data = png_bytes(4, 1, depth, 3, row, extra)
    decoded = codec.decode(data)
    assert codec.probe(data).channels == 4
    assert decoded[0, :, 3].tolist() == [*alpha[:4], *[255] * (4 - length)]
    assert decoded[0, :, :3].tobytes() == bytes(range(12))


def test_transparency_that_does_not_fit_the_colours_is_ignored() -> None:
    for colour, lengths in ((0, (0, 1, 6)), (2, (0, 2, 7)), (4, (2,)), (6, (6,))):
        channels = SIZE_BY_COLOUR[colour]
        for length in lengths:
            data = png_bytes(32, 24, 8, colour, rows_of(scene(channels=channels)), png_chunk(b"tRNS", bytes(length)))
            assert codec.probe(data).channels == channels
            assert np.array_equal(codec.decode(data), scene(channels=channels))


def test_transparency_after_the_pixels_is_ignored() -> None:
    data = rgb()
    late = data[:-12] + png_chunk(b"tRNS", bytes(6)) + data[-12:]
    assert codec.probe(late).channels == 3
    assert np.array_equal(codec.decode(late), scene())


def test_a_palette_picture_without_a_palette_is_damaged() -> None:
    for extra in (b"", png_chunk(b"PLTE", bytes(4)), png_chunk(b"PLTE", bytes(771))):
        with pytest.raises(BadPicture, match="damaged"):
            codec.decode(png_bytes(8, 1, 8, 3, bytes(9), extra))


def test_16_bit_alpha_is_rotated_with_its_picture() -> None:
    pixels = scene(channels=1, dtype="uint16")
    extra = png_chunk(b"eXIf", orientation_exif(6).tobytes()[6:]) + png_chunk(
        b"tRNS", pixels[2, 3].astype(">u2").tobytes()
    )
    decoded = codec.decode(png_bytes(32, 24, 16, 0, rows_of(pixels.astype(">u2")), extra))
    alpha = np.where(pixels == pixels[2, 3], 0, 65535).astype(np.uint16)
    assert np.array_equal(decoded, np.rot90(np.concatenate([pixels, alpha], -1), -1))
