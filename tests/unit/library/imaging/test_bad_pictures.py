"""Damaged, hostile and odd bytes give a BadPicture with a reason, never a crash or invented pixels."""

from __future__ import annotations

import io
import logging
import resource
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from library.errors import BadPicture
from library.imaging import codec
from tests.picture_examples import (
    encoded,
    kinds,
    npy_array,
    npy_bytes,
    orientation_exif,
    pil_bytes,
    png_bytes,
    png_chunk,
    scene,
    tiff_bytes,
    with_tiff_tag,
)

KINDS = kinds()
# Small pictures, one for every code path, for tests that decode each many times.
FEW = [
    "jpeg",
    "jpeg progressive",
    "jpeg cmyk",
    "jpeg turned",
    "png palette transparent",
    "png turned",
    "png 3 uint16",
    "webp lossless",
    "webp turned",
    "gif",
    "bmp palette",
    "tiff palette",
    "tiff 1-bit group4",
    "tiff jpeg",
    "tiff tiles",
    "tiff planes",
    "tiff 3 uint8",
    "tiff 7 float32",
    "npy 1 uint8",
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silences what Pillow and tifffile report about odd files."""
    logging.disable(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def reason_of(data: bytes) -> str:
    """The reason why `data` cannot be decoded; fails if it can."""
    with pytest.raises(BadPicture) as raised:
        codec.decode(data)
    assert raised.value.detail
    return raised.value.reason


def outcome_of(data: bytes) -> str:
    """`ok` or the reason; a picture that is decoded must match its header."""
    try:
        header = codec.probe(data)
        pixels = codec.decode(data)
    except BadPicture as bad:
        return bad.reason
    assert (header.height, header.width, header.channels, header.dtype) == (*pixels.shape, pixels.dtype.name)
    return "ok"


REASONS = {
    "ok",
    "empty",
    "not_an_image",
    "damaged",
    "truncated",
    "unsupported",
    "zero_size",
    "too_large",
    "too_much_work",
}


# -- not a picture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [codec.DEFAULT_LIMITS, None])
def test_an_empty_file_is_empty(limits: codec.Limits | None) -> None:
    with pytest.raises(BadPicture) as raised:
        codec.probe(b"", limits)
    assert raised.value.reason == "empty"


@pytest.mark.parametrize(
    "data", [b"", b"hello, I am not a picture", b"<html/>", b"\xff\xd8", b"RIFF\0\0\0\0WAVE", b"PK\3\4", b"P5ia"]
)
def test_files_of_other_kinds_are_not_an_image(data: bytes) -> None:
    assert reason_of(data) == ("not_an_image" if data else "empty")


@given(st.binary(max_size=300))
def test_random_bytes_give_a_bad_picture(data: bytes) -> None:
    assert outcome_of(data) in REASONS


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\x20\0\0\0WEBPVP8 ",
            b"GIF89a",
            b"BM",
            b"II*\0",
            b"MM\0+",
            b"\x93NUMPY\1\0",
        ]
    ),
    st.binary(max_size=200),
)
def test_random_bytes_after_valid_magic_bytes_give_a_bad_picture(start: bytes, data: bytes) -> None:
    assert outcome_of(start + data) in REASONS


# -- cut off, and bits flipped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_anywhere_is_refused_or_decodes_completely(kind: str) -> None:
    whole, data = codec.decode(KINDS[kind]), KINDS[kind]
    # Every length within the header, then about 150 lengths up to the end.
    for length in [*range(min(len(data), 150)), *range(150, len(data), max(1, len(data) // 150))]:
        if outcome_of(data[:length]) == "ok":  # the end was not needed: a trailer, a second frame
            assert np.array_equal(codec.decode(data[:length]), whole), length


@pytest.mark.parametrize(
    "kind",
    [
        "jpeg",
        "jpeg grey",
        "jpeg progressive",
        "jpeg cmyk",
        "png 3 uint8",
        "png 3 uint16",
        "webp 3 uint8",
        "npy 3 float32",
    ],
)
def test_a_file_cut_off_anywhere_is_refused(kind: str) -> None:
    data = KINDS[kind]
    reasons = {reason_of(data[:length]) for length in range(len(data) - 1)}
    assert reasons <= {"empty", "not_an_image", "damaged", "truncated"}


def test_a_photo_without_its_end_is_truncated() -> None:
    for kind in ("jpeg", "png", "tiff", "npy", "bmp"):
        data = encoded(kind, 200, 300)
        for fraction in (0.5, 0.9, 0.999):
            assert reason_of(data[: int(len(data) * fraction)]) == "truncated", (kind, fraction)


@pytest.mark.parametrize("kind", FEW)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_changed_bytes_give_pixels_or_a_bad_picture(kind: str, data: st.DataObject) -> None:
    changed = bytearray(KINDS[kind])
    places = st.integers(0, len(changed) - 1) | st.integers(0, min(len(changed) - 1, 250))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4)):
        changed[place] ^= value
    assert outcome_of(bytes(changed)) in REASONS


def test_a_flipped_bit_in_a_jpeg_is_decoded_or_a_bad_picture() -> None:
    data = encoded("jpeg", 64, 96)
    start = data.index(b"\xff\xda")
    detected = 0
    for place in range(start, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        outcome = outcome_of(bytes(changed))
        assert outcome in ("ok", "damaged", "truncated")
        detected += outcome != "ok"
        if outcome == "ok":
            continue
        with pytest.raises(ValueError, match=r"."):
            simplejpeg.decode_jpeg(bytes(changed), "RGB", strict=True)
    assert detected > 20


def test_jpegs_that_lenient_decoders_fill_with_grey_are_refused() -> None:
    data = encoded("jpeg", 64, 96)
    cut, hole = data[: len(data) * 2 // 3], data[: len(data) // 2] + b"\xff\xd0" + data[len(data) // 2 + 40 :]
    for damaged in (cut + b"\xff\xd9", hole):
        assert simplejpeg.decode_jpeg(damaged, "RGB", strict=False).shape == (64, 96, 3)
        assert reason_of(damaged) in ("damaged", "truncated")


def test_a_truncated_cmyk_jpeg_is_refused() -> None:
    data = pil_bytes(Image.fromarray(scene(64, 96, 4), "CMYK"), "jpeg")
    assert reason_of(data[: len(data) * 2 // 3] + b"\xff\xd9") in ("damaged", "truncated")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_wrong_bit_anywhere_in_png_pixels_fails_the_checksum(dtype: str) -> None:
    data = encoded("png", dtype=dtype)
    start = data.index(b"IDAT")
    for place in range(start + 4, len(data) - 16, 7):
        changed = bytearray(data)
        changed[place] ^= 4
        with pytest.raises(BadPicture, match=f"damaged: bad checksum in the IDAT chunk at byte {start - 4}"):
            codec.decode(bytes(changed))


def test_a_tiff_with_missing_strips_is_refused() -> None:
    strips = tiff_bytes(scene(40, 20), photometric="rgb", rowsperstrip=8, compression="zlib")
    one = tiff_bytes(scene(40, 20), photometric="rgb", compression="zlib")
    assert reason_of(with_tiff_tag(one, 278, 8)) == "damaged", "five strips are needed and one is present"
    assert reason_of(with_tiff_tag(one, 257, 400)) == "damaged", "more rows than were stored"
    assert reason_of(with_tiff_tag(one, 279, 0)) == "truncated", "a strip of no bytes"
    assert reason_of(strips[:-30]) == "truncated"
    jpeg = tiff_bytes(scene(64, 96), photometric="rgb", compression="jpeg")
    assert reason_of(jpeg[:-200]) == "truncated", "the JPEG codec alone would fill the rest"


def test_a_sparse_tile_of_gdal_is_zero() -> None:
    data = tiff_bytes(scene(16, 16, 1)[:, :, 0], photometric="minisblack", tile=(16, 16), compression="zlib")
    sparse = with_tiff_tag(with_tiff_tag(data, 324, 0), 325, 0)
    assert codec.decode(sparse).shape == (16, 16, 1)
    assert not codec.decode(sparse).any()


# -- too large --------------------------------------------------------------------------------------------------------


def bombs() -> dict[str, bytes]:
    """Small files whose header says 60000 x 60000, or the most that the format allows."""
    jpeg, gif, bmp = bytearray(encoded("jpeg")), bytearray(KINDS["gif"]), bytearray(KINDS["bmp"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    screen = bytearray(gif)
    screen[6:10] = struct.pack("<HH", 60000, 60000)
    frame = bytearray(
        pil_bytes(
            Image.fromarray(scene()), "gif", save_all=True, append_images=[Image.new("RGB", (32, 24))], disposal=2
        )
    )
    frame[6:10] = struct.pack("<HH", 60000, 60000)
    at = frame.index(b",", 13)
    frame[at + 5 : at + 9] = struct.pack("<HH", 60000, 60000)
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    canvas = bytearray(KINDS["webp animated"])
    canvas[24:30] = (59999).to_bytes(3, "little") * 2
    still = bytearray(encoded("webp"))
    at = still.index(b"\x9d\x01\x2a")
    still[at + 3 : at + 7] = struct.pack("<HH", 16383, 16383)
    tiff = with_tiff_tag(with_tiff_tag(encoded("tiff"), 256, 60000), 257, 60000)
    tiles = with_tiff_tag(with_tiff_tag(KINDS["tiff tiles"], 322, 60000), 323, 60000)
    turned = png_chunk(b"eXIf", orientation_exif(6).tobytes()[6:])
    return {
        "jpeg": bytes(jpeg),
        "png": png_bytes(60000, 60000, 8, 2, b""),
        "png uint16": png_bytes(60000, 60000, 16, 6, b""),
        "png turned": png_bytes(60000, 60000, 8, 2, b"", turned),
        "png with eXIf in a comment": png_bytes(60000, 60000, 8, 2, b"", png_chunk(b"tEXt", b"c\0eXIf")),
        "gif screen": bytes(screen),
        "gif frame": bytes(frame),
        "bmp": bytes(bmp),
        "webp canvas": bytes(canvas),
        "webp still": bytes(still),
        "tiff": tiff,
        "tiff tiles": tiles,
        "npy": npy_bytes("{'descr': '|u1', 'fortran_order': False, 'shape': (60000, 60000, 3)}"),
        "npy beyond 64 bits": npy_bytes(
            "{'descr': '|u1', 'fortran_order': False, 'shape': (2**40, 1099511627776, 3)}".replace("2**40", str(2**40))
        ),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_by_its_header(name: str) -> None:
    with pytest.raises(BadPicture) as raised:
        codec.probe(BOMBS[name])
    # An NPY file with less data than its header says is refused as truncated before its size is checked.
    assert raised.value.reason == ("truncated" if name == "npy" else "too_large")
    assert reason_of(BOMBS[name]) == raised.value.reason


def test_refusing_decompression_bombs_takes_no_memory() -> None:
    """Measured in a new process, because the peak counts for a whole process."""
    code = (
        "import resource, sys, pickle, logging; sys.path.insert(0, sys.argv[1]); logging.disable()\n"
        "from test_bad_pictures import BOMBS, KINDS, outcome_of\n"
        "[outcome_of(data) for data in KINDS.values()]\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "assert 'ok' not in {outcome_of(data) for data in BOMBS.values()}\n"
        "print(peak() - before)"
    )
    folder = __file__.rpartition("/")[0]
    result = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20_000, "kilobytes"


def test_pixel_data_larger_than_the_header_says_is_not_unpacked() -> None:
    one = tiff_bytes(scene(8, 8), photometric="rgb", compression="zlib")
    bomb = tiff_bytes(np.zeros((6000, 6000, 3), np.uint8), photometric="rgb", compression="zlib", rowsperstrip=6000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    at = len(one) + bomb.index(b"\x78", 200)
    assert reason_of(with_tiff_tag(with_tiff_tag(one, 273, at), 279, len(one) + len(bomb) - at) + bomb) == "damaged"
    rows = b"\0" * 3_000_000
    assert outcome_of(png_bytes(8, 8, 8, 2, rows)) in ("ok", "damaged")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize(
    ("limits", "detail"),
    [
        (codec.Limits(max_bytes=200), "bytes; the limit is 200"),
        (codec.Limits(max_pixels=32 * 24 - 1), "32x24 is 768 pixels; the limit is 767"),
        (codec.Limits(max_decoded_bytes=32 * 24 * 3 - 1), "2,304 bytes when decoded; the limit is 2,303"),
    ],
)
def test_each_size_limit_is_checked_and_named(limits: codec.Limits, detail: str) -> None:
    for read in (codec.probe, codec.decode):
        with pytest.raises(BadPicture, match=detail) as raised:
            read(encoded("jpeg"), limits)
        assert raised.value.reason == "too_large"
    assert codec.decode(encoded("jpeg"), codec.Limits(10_000, 32 * 24, 32 * 24 * 3)).shape == (24, 32, 3)


def test_16_bit_and_float_samples_count_by_their_bytes() -> None:
    limits = codec.Limits(max_decoded_bytes=24 * 32 * 3 * 2)
    assert codec.decode(encoded("tiff", dtype="uint16"), limits).dtype == np.uint16
    with pytest.raises(BadPicture, match="too_large"):
        codec.decode(encoded("tiff", dtype="float32"), limits)


# -- empty and invalid pictures ---------------------------------------------------------------------------------------


def test_pictures_without_pixels_are_refused() -> None:
    bmp, jpeg = bytearray(KINDS["bmp"]), bytearray(encoded("jpeg"))
    bmp[18:26] = bytes(8)
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 7 : at + 9] = bytes(2)
    none = [
        png_bytes(0, 8, 8, 2, b""),
        npy_array(np.zeros((0, 4, 3), np.uint8)),
        npy_array(np.zeros((4, 4, 0), np.uint8)),
    ]
    none += [with_tiff_tag(encoded("tiff"), 256, 0)]
    assert [outcome_of(data) for data in none] == ["zero_size"] * len(none)
    assert {outcome_of(bytes(data)) for data in (bmp, jpeg)} <= {"zero_size", "damaged"}


@pytest.mark.parametrize(
    "array",
    [np.array([[{"a": 1}]], object), np.array([["text"]]), np.zeros((2, 2), [("a", "u1")])],
    ids=["object", "text", "fields"],
)
def test_an_npy_of_non_numbers_is_refused_and_never_unpickled(array: np.ndarray) -> None:  # type: ignore[type-arg]
    assert reason_of(npy_array(array)) == "unsupported"


def test_a_pickle_is_refused_and_never_run() -> None:
    class Marker:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("the pickle was run",))

    import pickle

    assert reason_of(pickle.dumps(Marker())) == "not_an_image"
    out = io.BytesIO()
    np.save(out, np.array([[Marker()]], object), allow_pickle=True)
    assert reason_of(out.getvalue()) == "unsupported"


@pytest.mark.parametrize(
    ("header", "version", "reason"),
    [
        ("-" * 9000 + "1", (1, 0), "damaged"),
        ("[" * 9000, (1, 0), "damaged"),
        ("__import__('os').abort()", (1, 0), "damaged"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2)}", (9, 0), "unsupported"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, 2)}", (1, 0), "zero_size"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (4,)}", (1, 0), "unsupported"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}", (1, 0), "unsupported"),
        ("{'descr': '|u1', 'shape': (2, 2)}", (2, 0), "damaged"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_invalid_npy_header_is_refused(header: str, version: tuple[int, int], reason: str) -> None:
    assert reason_of(npy_bytes(header, bytes(100), version)) == reason


def test_a_tiff_tag_with_too_many_values_is_damage() -> None:
    data = encoded("tiff")
    for tag in (256, 257, 259, 277):
        at = data.index(struct.pack("<H", tag), 8)
        assert reason_of(data[: at + 4] + struct.pack("<I", 3) + data[at + 8 :]) == "damaged", tag


def test_a_tiff_palette_stored_as_text_is_damage() -> None:
    data = KINDS["tiff palette"]
    at = data.index(struct.pack("<HH", 320, 3))
    assert reason_of(data[: at + 2] + struct.pack("<H", 2) + data[at + 4 :]) == "damaged"


def test_a_cmyk_tiff_with_too_many_samples_is_refused_by_its_header() -> None:
    file = io.BytesIO()
    inks = np.zeros((16, 16, 9), np.uint8)
    tifffile.imwrite(file, inks, photometric="separated", planarconfig="contig", extrasamples=(0,) * 5)
    with pytest.raises(BadPicture, match="unsupported"):
        codec.probe(file.getvalue())


def test_a_tiff_palette_with_three_samples_a_pixel_is_refused() -> None:
    data = tiff_bytes(np.zeros((8, 8), np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    assert codec.probe(data).channels == 3
    with pytest.raises(BadPicture, match="a palette with 3 samples"):
        codec.probe(with_tiff_tag(data, 277, 3))


def test_a_cmyk_tiff_of_floats_is_refused_by_its_header() -> None:
    inks = tiff_bytes(np.zeros((8, 8, 4), np.float32), photometric="separated")
    with pytest.raises(BadPicture, match="unsupported"):
        codec.probe(inks)
