"""The measures that a side table can hold, and how they are computed from the rows of a shard."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

from library.choosing.measures import hashes
from library.dataset.manifest import VERSIONS
from library.errors import BadPicture, UsageError
from library.grammar import nearest
from library.imaging import codec
from library.imaging.picture import Pixels
from library.steps import scores

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

DIGEST_BYTES = 16

Needs = Literal["header", "bytes", "pixels"]


@dataclass(frozen=True)
class Measure:
    """One column of a side table.

    Attributes:
        name: of the column.
        type: of its values.
        needs: what it is computed from.
        meaning: one phrase, with its unit and range.
        version: changes when its value for the same picture may change.
    """

    name: str
    type: pa.DataType
    needs: Needs
    meaning: str
    version: int = 1

    @property
    def made_by(self) -> str:
        """What decides the values besides the shard; a column made by anything else counts as missing."""
        if self.needs != "pixels":
            return str(self.version)
        return f"{self.version} " + " ".join(f"{name}-{VERSIONS[name]}" for name in _PIXEL_PACKAGES)


# Packages that decide pixels and scores; a column that needs pixels is measured again when one of them changes.
_PIXEL_PACKAGES = (
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "pillow-heif",
    "tifffile",
    "imagecodecs",
    "numpy",
)

_FLOAT, _INT, _HASH, _DIGEST = pa.float32(), pa.int32(), pa.uint64(), pa.binary(DIGEST_BYTES)

#: Every measure by name, in the order of the columns.
MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("width", _INT, "header", "pixels, upright"),
        Measure("height", _INT, "header", "pixels, upright"),
        Measure("num_bytes", pa.int64(), "header", "size of the encoded picture in bytes"),
        Measure("aspect_ratio", _FLOAT, "header", "width / height"),
        Measure("brightness", _FLOAT, "pixels", "mean grey, 0 (black) to 1 (white)", scores.VERSION),
        Measure("brightness_p5", _FLOAT, "pixels", "5th percentile of grey, 0 to 1", scores.VERSION),
        Measure("brightness_p99", _FLOAT, "pixels", "99th percentile of grey, 0 to 1", scores.VERSION),
        Measure("contrast", _FLOAT, "pixels", "standard deviation of grey, 0 to 0.5 of white", scores.VERSION),
        Measure("entropy", _FLOAT, "pixels", "Shannon entropy of the grey histogram, 0 to 8 bits", scores.VERSION),
        Measure(
            "sharpness",
            _FLOAT,
            "pixels",
            f"variance of the Laplacian of grey (0 to 255), reduced to {scores.SIDE_PX} pixels at the longer side",
            scores.VERSION,
        ),
        Measure("colourfulness", _FLOAT, "pixels", "Hasler and Suesstrunk 2003, 0 (grey) to about 110", scores.VERSION),
        Measure("largest_std", _FLOAT, "pixels", "largest standard deviation of a channel", scores.VERSION),
        Measure("bytes_digest", _DIGEST, "bytes", "SHA-256 of the encoded picture, its first 128 bits"),
        Measure(
            "pixels_digest",
            _DIGEST,
            "pixels",
            "SHA-256 of the decoded pixels and their shape, its first 128 bits",
        ),
        Measure("phash", _HASH, "pixels", "64 bits; alike pictures differ in few", hashes.VERSION),
        Measure("dhash", _HASH, "pixels", "64 bits; alike pictures differ in few", hashes.VERSION),
        Measure("phash_flipped", _HASH, "pixels", "phash of the mirrored picture", hashes.VERSION),
        Measure("dhash_flipped", _HASH, "pixels", "dhash of the mirrored picture", hashes.VERSION),
    )
}
#: What `striate measure` computes where no columns are chosen.
DEFAULT = tuple(name for name in MEASURES if not name.endswith("_flipped"))
#: Why a picture's pixels could not be measured; null for all others.
REASON = "reason"


def check_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the named measures in the order of `MEASURES`, each once.

    Raises:
        UsageError: a name is unknown, or there is none.
    """
    for name in names:
        if name not in MEASURES:
            known = ", ".join(MEASURES)
            raise UsageError(f"unknown measure '{name}'{nearest(name, MEASURES)}; choose from {known}")
    if not names:
        raise UsageError(f"no measures were chosen; choose from {', '.join(MEASURES)}")
    return tuple(name for name in MEASURES if name in names)


@dataclass
class Measured:
    """The measures of some rows.

    Attributes:
        table: the key, `reason`, and a column for each measure; null where a picture could not be measured.
        rejected: number of pictures that could not be measured, by reason.
        seconds: time by stage: `decode`, `digest`, `hash`, `score`.
    """

    table: pa.Table
    rejected: Counter[str]
    seconds: Counter[str] = field(default_factory=Counter[str])


def measure_rows(rows: pa.Table, names: Sequence[str], limits: codec.Limits = codec.DEFAULT_LIMITS) -> Measured:
    """Measures the pictures of some rows of a shard.

    Args:
        rows: with the columns of a dataset.
        names: of measures.
        limits: pictures beyond them are not decoded and count as rejected.
    """
    batch = _Batch(rows, names, limits)
    for number in range(rows.num_rows):
        batch.add(number)
    return batch.finish()


class _Batch:
    def __init__(self, rows: pa.Table, names: Sequence[str], limits: codec.Limits) -> None:
        self._rows, self._names, self._limits = rows, names, limits
        stored = _compute.struct_field(rows["image"], "bytes")
        self._data = stored.combine_chunks() if isinstance(stored, pa.ChunkedArray) else stored
        self._needs = {MEASURES[name].needs for name in names}
        self._hashes = {name for name in names if MEASURES[name].type == _HASH}
        self._values: dict[str, list[Any]] = {name: [] for name in names}
        self._reasons: list[str | None] = []
        self._cells: dict[str, list[hashes.Small]] = {"phash": [], "dhash": []}
        self._hashed: list[int] = []
        self._seconds = Counter[str]()

    def add(self, number: int) -> None:
        """Measures one row."""
        values: dict[str, Any] = {}
        reason = None
        try:
            data = self._data[number].as_py() if self._needs & {"bytes", "pixels"} else b""
            if data is None:
                raise BadPicture("empty", "the image column holds no bytes")
            if "bytes_digest" in self._values:
                values["bytes_digest"] = self._timed("digest", _digest, data)
            if "pixels" in self._needs:
                self._add_pixels(number, self._timed("decode", codec.decode, data, self._limits), values)
        except BadPicture as bad:
            reason = bad.reason
            values = {name: value for name, value in values.items() if MEASURES[name].needs != "pixels"}
        self._reasons.append(reason)
        for name, column in self._values.items():
            column.append(values.get(name))

    def _add_pixels(self, number: int, pixels: Pixels, values: dict[str, Any]) -> None:
        start = perf_counter()
        grey = scores.grey(pixels) if self._values.keys() & scores.GREY_SCORES.keys() else None
        for name, score in scores.GREY_SCORES.items():
            if name in self._values and grey is not None:
                values[name] = score(grey)
        for name, score in scores.COLOUR_SCORES.items():
            if name in self._values:
                values[name] = score(pixels)
        self._seconds["score"] += perf_counter() - start  # pyright: ignore[reportArgumentType] -- sums floats as well
        if "pixels_digest" in self._values:
            values["pixels_digest"] = self._timed("digest", _pixels_digest, pixels)
        if self._hashes:
            self._timed("hash", self._add_cells, pixels)
            self._hashed.append(number)

    def _add_cells(self, pixels: Pixels) -> None:
        small = hashes.reduced(pixels)
        for kind, cells in (("phash", hashes.phash_cells), ("dhash", hashes.dhash_cells)):
            if any(name.startswith(kind) for name in self._hashes):
                self._cells[kind].append(cells(small))

    def _timed(self, stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        start = perf_counter()
        try:
            return work(*arguments)
        finally:
            self._seconds[stage] += perf_counter() - start  # pyright: ignore[reportArgumentType]

    def finish(self) -> Measured:
        """Returns the columns of all rows."""
        for name in self._hashes:
            self._values[name] = self._timed("hash", self._bits, name)
        rows = self._rows
        columns: dict[str, Any] = {"key": rows["key"], REASON: pa.array(self._reasons, pa.string())}
        for name in self._names:
            measure = MEASURES[name]
            columns[name] = (
                _header_column(name, rows).cast(measure.type)
                if measure.needs == "header"
                else pa.array(self._values[name], measure.type)
            )
        rejected = Counter(reason for reason in self._reasons if reason is not None)
        return Measured(pa.table(columns), rejected, self._seconds)

    def _bits(self, name: str) -> list[int | None]:
        kind, _, flipped = name.partition("_")
        bits: list[int | None] = [None] * self._rows.num_rows
        if self._hashed:
            compute = hashes.phash_bits if kind == "phash" else hashes.dhash_bits
            computed = compute(np.stack(self._cells[kind]), flipped=bool(flipped))
            for number, value in zip(self._hashed, computed.tolist(), strict=True):
                bits[number] = value
        return bits


def _header_column(name: str, rows: pa.Table) -> Any:
    if name == "num_bytes":
        return _compute.binary_length(_compute.struct_field(rows["image"], "bytes"))
    if name == "aspect_ratio":
        return _compute.divide(rows["width"].cast(pa.float64()), rows["height"].cast(pa.float64()))
    return rows[name]


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def _pixels_digest(pixels: Pixels) -> bytes:
    state = hashlib.sha256(f"{pixels.shape} {pixels.dtype.name}".encode())
    state.update(np.ascontiguousarray(pixels).data)
    return state.digest()[:DIGEST_BYTES]
