"""AVIF, HEIC and JPEG 2000: depth, alpha, orientation, and hostile files."""

from __future__ import annotations

import random
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from library.errors import BadPicture
from library.imaging import codec
from tests.picture_examples import heic_bytes, kinds, orientation_exif, pil_bytes, scene

KINDS = {kind: data for kind, data in kinds().items() if kind.split()[0] in ("avif", "heic", "jp2")}


def avif_bytes(pixels: NDArray[Any], bits: int = 8) -> bytes:
    """A lossless AVIF; uint16 pixels are reduced to `bits`."""
    stored = pixels if bits == 8 else pixels >> (16 - bits)
    return imagecodecs.avif_encode(stored.squeeze(), level=100, bitspersample=bits)


def jp2_bytes(pixels: NDArray[Any], bits: int = 8, kind: str = "jp2") -> bytes:
    stored = pixels if bits == 8 else pixels >> (16 - bits)
    return imagecodecs.jpeg2k_encode(stored.squeeze(), level=0, reversible=True, bitspersample=bits, codecformat=kind)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


# -- sniffing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        (b"avif", "avif"),
        (b"avis", "avif"),
        (b"mif1miafavif", "avif"),
        (b"heic", "heic"),
        (b"heixmif1", "heic"),
        (b"mif1heic", "heic"),
        (b"msf1hevc", "heic"),
        (b"mif1", "heic"),
        (b"isomavc1mp41", None),
        (b"qt  ", None),
        (b"crx isom", None),
    ],
)
def test_heif_and_video_files_are_recognised_by_their_brands(brands: bytes, name: str | None) -> None:
    data = box(b"ftyp", brands[:4] + bytes(4) + brands[4:]) + box(b"meta", bytes(40)) + b"avif" * 4
    assert codec.sniff(data) == name
    if name is None:
        with pytest.raises(BadPicture, match=r"unsupported: this is a (video|Canon raw file)"):
            codec.probe(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "SVG"),
        (b"\xef\xbb\xbf<svg/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"P6\n# made\n3 2", "Netpbm"),
        (b"\0\0\1\0\1\0", "icon"),
        (bytes(128) + b"DICM", "DICOM"),
    ],
)
def test_known_formats_that_are_unsupported_are_named(data: bytes, name: str) -> None:
    with pytest.raises(BadPicture, match=rf"unsupported: this is .*{name}.*; supported formats are jpeg, png"):
        codec.decode(data)


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_8_bit_pixels_are_kept_exactly(channels: int) -> None:
    pixels = scene(channels=channels)
    for data in (avif_bytes(pixels), heic_bytes(pixels), jp2_bytes(pixels), jp2_bytes(pixels, kind="j2k")):
        assert np.array_equal(codec.decode(data), pixels)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_10_and_12_bits_are_stretched_to_16(channels: int, bits: int) -> None:
    pixels = scene(channels=channels, dtype="uint16")
    pixels[0, 0], pixels[0, 1] = 0, 65535
    expected = np.rint((pixels >> (16 - bits)) * (65535 / (2**bits - 1)))
    files = [avif_bytes(pixels, bits), jp2_bytes(pixels, bits)]
    if bits == 10:
        files.append(heic_bytes(pixels))
    for data in files:
        decoded = codec.decode(data)
        assert codec.probe(data).dtype == "uint16"
        # Colours may have been converted to another colour space in the file.
        assert np.abs(decoded - expected).max() <= 2 * 65535 / 2**bits
        assert (decoded[0, 0].max(), decoded[0, 1].min()) == (0, 65535)


def test_grey_with_alpha_keeps_both() -> None:
    pixels = scene(channels=2)
    avif, jp2 = codec.decode(avif_bytes(pixels)), codec.decode(jp2_bytes(pixels))
    assert np.array_equal(jp2, pixels)
    assert np.array_equal(avif, pixels[:, :, [0, 0, 0, 1]])


def test_jpeg_2000_holds_seven_bands_of_16_bits() -> None:
    pixels = scene(channels=7, dtype="uint16")
    assert np.array_equal(codec.decode(jp2_bytes(pixels, 16)), pixels)


@pytest.mark.parametrize("kind", ["avif", "heic"])
def test_colours_premultiplied_in_the_container_are_divided_by_alpha(kind: str) -> None:
    pixels = scene(channels=4)
    pixels[:, :, 3] = 128
    if kind == "avif":
        data = pil_bytes(Image.fromarray(pixels), "avif", quality=100, subsampling="4:4:4", alpha_premultiplied=True)
        assert b"prem" in data
    else:
        multiplied = pixels.copy()
        multiplied[:, :, :3] = np.rint(pixels[:, :, :3] * (128 / 255))
        data = heic_bytes(multiplied, premultiplied=True)
    assert np.abs(codec.decode(data).astype(int) - pixels).max() <= 4


def jp2_of(codestream: bytes, header: bytes) -> bytes:
    signature = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return signature + box(b"jp2h", header) + box(b"jp2c", codestream)


def test_a_jpeg_2000_palette_gives_its_colours() -> None:
    indices = (np.arange(768).reshape(24, 32, 1) % 5).astype(np.uint8)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint8)
    header = box(b"ihdr", struct.pack(">IIHBBBB", 24, 32, 1, 7, 7, 0, 0))
    header += box(b"colr", struct.pack(">BBBI", 1, 0, 0, 16))
    header += box(b"pclr", struct.pack(">HB", 5, 3) + bytes([7, 7, 7]) + colours.tobytes())
    header += box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, column) for column in range(3)))
    data = jp2_of(jp2_bytes(indices, kind="j2k"), header)
    assert codec.probe(data).channels == 3
    assert np.array_equal(codec.decode(data), colours[indices[:, :, 0]])


@pytest.mark.parametrize(("number", "name"), [(12, "CMYK"), (14, "CIELab"), (99, "of space 99")])
def test_unsupported_colour_spaces_of_jpeg_2000_are_refused(number: int, name: str) -> None:
    header = box(b"ihdr", struct.pack(">IIHBBBB", 24, 32, 4, 7, 7, 0, 0))
    header += box(b"colr", struct.pack(">BBBI", 1, 0, 0, number))
    with pytest.raises(BadPicture, match=f"unsupported: a JPEG 2000 whose colours are {name}"):
        codec.probe(jp2_of(jp2_bytes(scene(channels=4), kind="j2k"), header))


# -- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["avif", "heic"])
def test_the_containers_rotation_is_applied_once(kind: str, orientation: int) -> None:
    stored = scene()
    # The orientation of PNGs is tested elsewhere.
    expected = codec.decode(pil_bytes(Image.fromarray(stored), "png", exif=orientation_exif(orientation)))
    if kind == "avif":
        exif = orientation_exif(orientation)
        data = pil_bytes(Image.fromarray(stored), kind, exif=exif, quality=100, subsampling="4:4:4")
    else:
        data = heic_bytes(stored, orientation)
    header, pixels = codec.probe(data), codec.decode(data)
    assert (header.height, header.width) == pixels.shape[:2] == expected.shape[:2]
    assert np.abs(pixels.astype(int) - expected).max() <= 6


def test_an_orientation_in_exif_alone_does_not_rotate_an_avif() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a note"
    data = pil_bytes(Image.fromarray(scene()), "avif", exif=exif)
    # The tag of the note is changed to the orientation tag; the container does not mention it.
    at = data.index(b"\x01\x0e\0\2")
    turned = data[:at] + b"\x01\x12\0\3\0\0\0\1\0\6\0\0" + data[at + 12 :]
    assert codec.decode(turned).shape == (24, 32, 3)
    assert np.array_equal(codec.decode(turned), codec.decode(data))


def test_an_avif_sequence_gives_its_first_picture_and_notes_more() -> None:
    first, second = scene(), np.ascontiguousarray(scene()[::-1])
    avif = pil_bytes(Image.fromarray(first), "avif", save_all=True, append_images=[Image.fromarray(second)])
    assert codec.probe(avif).has_more_pages
    assert not codec.probe(KINDS["avif"]).has_more_pages
    assert np.abs(codec.decode(avif).astype(int) - first).mean() < 12


# -- hostile files ----------------------------------------------------------------------------------------------------


def hostile(data: bytes, chance: random.Random) -> bytes:
    """A copy of a file with some bytes changed, removed, repeated or replaced by false sizes."""
    changed = bytearray(data)
    if chance.random() < 0.2:
        return bytes(changed[: chance.randrange(len(changed))])
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(min(len(changed), 700))
        match chance.randrange(4):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at : at + 4] = chance.choice((bytes(4), b"\xff" * 4, b"\0\0\xff\xff", b"\0\0\0\1"))
            case 2:
                del changed[at : at + chance.randrange(1, 20)]
            case _:
                changed[at:at] = changed[at : at + chance.randrange(1, 60)]
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_decodes_to_its_headers_size_or_is_refused(kind: str) -> None:
    chance = random.Random(kind)
    for _ in range(40):
        data = hostile(KINDS[kind], chance)
        try:
            header = codec.probe(data)
            pixels = codec.decode(data)
        except BadPicture:
            continue
        assert (header.height, header.width, header.channels) == pixels.shape


@pytest.mark.parametrize("kind", ["avif", "heic", "jp2"])
def test_a_size_beyond_the_limits_is_refused_by_the_header(kind: str) -> None:
    data = bytearray(KINDS[kind])
    at = data.index(b"\xff\x4f\xff\x51") + 8 if kind == "jp2" else data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 16_000, 16_000)
    with pytest.raises(BadPicture) as raised:
        codec.probe(bytes(data))
    assert raised.value.reason == "too_large"


def test_a_heic_with_more_pixels_than_its_header_says_is_refused() -> None:
    data = bytearray(heic_bytes(np.zeros((512, 768, 3), np.uint8)))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 64, 64)
    with pytest.raises(BadPicture):
        codec.decode(bytes(data))


def test_a_file_with_too_many_boxes_is_refused() -> None:
    data = KINDS["jp2"]
    with pytest.raises(BadPicture, match="too_much_work: the file has more than 50,000 boxes"):
        codec.probe(data[:12] + box(b"free", b"") * 50_000 + data[12:])
