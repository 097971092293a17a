"""Measures the time on one core to decode the most expensive pictures that are accepted, by format.

Each picture costs as much as its format allows within limits of 16 million pixels: as many scans, strips or runs as
are accepted, or noise, the most expensive content. The last two columns scale the time to the limits of a server (four
times as many pixels) and of a job (eight times).
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from benchmarks.common.command_line import make_parser, run_benchmark, say
from benchmarks.common.report import print_table
from benchmarks.filter.costly_pictures import many_scans, progressive_jpeg, run_length_bmp, striped_tiff, thin_png
from library.errors import BadPicture
from library.imaging import codec
from serve.settings import ServeSettings

_LIMITS = codec.Limits(max_pixels=2**24)
_SIDE = 4096
#: Side in pixels for slow encoders; the noise then has a quarter of the pixels.
_SMALL = 2048


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--only jpeg tiff --out /tmp/results")
    parser.add_argument("--only", nargs="*", metavar="FORMAT", help="only these formats (all)")
    return run_benchmark(__file__, parser, _measure, _print, machine_facts=lambda _: {"cores_used": 1})


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cv2.setNumThreads(1)
    ImageFile.MAXBLOCK = 2**28  # Pillow writes a progressive JPEG in one piece
    cases: list[dict[str, Any]] = []
    for name, (what, make) in _CASES.items():
        if not options.only or name.split()[0] in options.only:
            cases.append({"case": name, "what": what, **_measured(make())})
            say(str(cases[-1]))
    return {"parameters": {"pixels": 2**24}, "cases": cases}


def _measured(data: bytes) -> dict[str, Any]:
    """Measures processor time, because the machine may be busy, and scales it to each limit."""
    began = time.process_time()
    header = codec.probe(data, _LIMITS)
    probed = time.process_time()
    try:
        codec.decode(data, header=header)
        refused = ""
    except BadPicture as bad:  # refused after the same work
        refused = bad.reason
    seconds = time.process_time() - probed
    # The share of the limits that this picture uses: of the decoding work or of the pixels, whichever is larger.
    used = max(header.work_px / _LIMITS.max_work_px, header.width * header.height / _LIMITS.max_pixels)
    times = {"server": ServeSettings().max_pixels / 2**24, "job": codec.DEFAULT_LIMITS.max_pixels / 2**24}
    return {
        "bytes": len(data),
        "size": [header.width, header.height],
        "work_px": header.work_px,
        "refused": refused,
        "probe_s": round(probed - began, 4),
        "decode_s": round(seconds, 3),
        "expected_s": round(header.expected_s, 3),
        **{f"{name}_s": round(seconds * scale / used, 1) for name, scale in times.items()},
    }


def _print(result: Mapping[str, Any]) -> None:
    columns = ("picture", "MB", "probe s", "decode s", "server's limit s", "job's limit s")
    rows: list[Sequence[str]] = []
    for case in result["cases"]:
        figures = (case["bytes"] / 1e6, case["probe_s"], case["decode_s"], case["server_s"], case["job_s"])
        rows.append((f"{case['case']}: {case['what']}", *(f"{figure:.2f}" for figure in figures)))
    print_table("", columns, rows)


# -- pictures ---------------------------------------------------------------------------------------------------------


@cache
def _noise(side: int, channels: int = 3, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (side, side, channels), dtype)


def _pil(pixels: NDArray[Any], kind: str, mode: str | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(out, kind, **options)
    return out.getvalue()


def _tiff(pixels: NDArray[Any], compression: str, **options: Any) -> bytes:
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(out, pixels, photometric="rgb", compression=compression, metadata=None, **options)
    return out.getvalue()


def _most(make: Callable[[int], bytes], limit: int) -> bytes:
    """Returns the picture of the largest number below `limit` that is accepted."""

    def refused(number: int) -> bool:
        try:
            return codec.probe(make(number), _LIMITS).work_px > _LIMITS.max_work_px
        except BadPicture:
            return True

    return make(bisect_right(range(limit), False, key=refused) - 1)


def _scans(refining: bool) -> Callable[[], bytes]:
    return lambda: _most(lambda number: progressive_jpeg(_SIDE, _SIDE, many_scans(number, refining)), 5000)


def _column(number: int) -> bytes:
    return thin_png(number + 1, interlaced=True)


def _strips() -> bytes:
    strip = zlib.compress(bytes(50))
    return _most(lambda number: striped_tiff(50, number + 1, strip), 200_000)


def _scans_in_a_tiff() -> bytes:
    return _most(
        lambda number: striped_tiff(
            _SIDE, 1, progressive_jpeg(_SIDE, _SIDE, many_scans(number, refining=True)), 7, rows=_SIDE
        ),
        2000,
    )


def _runs() -> bytes:
    """Returns a picture with one pixel in each run, in as many runs as are accepted."""
    side = 1300
    return run_length_bmp(side, side, (b"\1\5" * side + b"\0\0") * side)


def _columns_first() -> bytes:
    out = io.BytesIO()
    np.save(out, np.asfortranarray(_noise(_SIDE)))
    return out.getvalue()


_CASES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg scans": ("progressive, scans of nothing", _scans(refining=False)),
    "jpeg refined": ("progressive, each scan refines all", _scans(refining=True)),
    "jpeg noise": (
        "progressive, noise at quality 100",
        lambda: _pil(_noise(_SMALL), "jpeg", quality=100, subsampling=0, progressive=True),
    ),
    "jpeg inks": ("CMYK, noise", lambda: _pil(_noise(_SIDE), "jpeg", "CMYK", quality=95)),
    "png noise": ("16 bits and alpha, noise", lambda: cv2.imencode(".png", _noise(_SIDE, 4, "uint16"))[1].tobytes()),
    "png column": (
        "interlaced, one column",
        lambda: _most(_column, 10**6),
    ),
    "webp noise": ("noise at quality 100", lambda: _pil(_noise(_SMALL), "webp", quality=100, method=0)),
    "gif noise": ("noise", lambda: _pil(_noise(_SIDE, 1)[:, :, 0], "gif")),
    "bmp runs": ("RLE8, runs of one pixel", _runs),
    "npy columns": ("columns first", _columns_first),
    "tiff strips": ("strips of one row", _strips),
    "tiff scans": ("a progressive JPEG as strip", _scans_in_a_tiff),
    "tiff lzma": ("noise, LZMA", lambda: _tiff(_noise(_SMALL) // 16, "lzma", tile=(256, 256))),
    "tiff jp2": ("noise, JPEG 2000", lambda: _tiff(_noise(_SMALL), "jpeg2000", tile=(256, 256))),
    "jp2 noise": ("lossless noise", lambda: _pil(_noise(_SMALL), "jpeg2000")),
    "avif noise": ("noise with alpha", lambda: _pil(_noise(_SMALL, 4), "avif", quality=95, speed=10)),
    "heic noise": ("noise", lambda: _heic(_noise(_SMALL))),
}


def _heic(pixels: NDArray[Any]) -> bytes:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(out, quality=95)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
