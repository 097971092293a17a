"""The listing of a source: one row per picture in Arrow, the options, and the checks of every listing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute

from library.dataset.record import CORE_COLUMNS, REJECT_COLUMNS
from library.errors import BadPicture, StriateError, UsageError
from library.imaging.codec import DEFAULT_LIMITS
from library.sources.allowed_hosts import parse_networks

_compute: Any = pyarrow.compute  # its functions are created at import time, which type checkers do not see
MAX_BYTES = DEFAULT_LIMITS.max_bytes
_EXTRA = "extra."  # prefix of the source's columns, so that its `size` is not ours; no name in INDEX_SCHEMA has it

#: Columns of every dataset; a source's column of the same name becomes `source_...`.
RESERVED = (*CORE_COLUMNS, *REJECT_COLUMNS, "split")

#: One row per picture. `uri` is the file or archive that holds it, `at` its place there (byte offset, or row number in
#: a Parquet file) and `size` its bytes (for Parquet an estimate). Rows with the same (uri, block) should be read
#: together, which is cheaper; block is null where the order does not matter. `problem` is "slug: detail" for a row that
#: is known to be unusable. `stored` describes a zip member in its archive, `parts` the other binary members of a
#: WebDataset sample.
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("at", pa.int64()),
        ("size", pa.int64()),
        ("block", pa.int64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("problem", pa.string()),
        (
            "stored",
            pa.struct([("span", pa.int64()), ("size", pa.int64()), ("method", pa.int32()), ("crc", pa.int64())]),
        ),
        ("parts", pa.list_(pa.struct([("column", pa.string()), ("at", pa.int64()), ("size", pa.int64())]))),
    ]
)


#: Prefix of the problem of a member that a later one of the same name replaces: the only problem with which two rows
#: may have the same key.
SUPERSEDED = "duplicate_key: "


@dataclass(frozen=True)
class LinkLimits:
    """Limits for fetching pictures from web addresses.

    Attributes:
        connections: simultaneous requests in total.
        per_host: simultaneous requests to one host.
        retries: further attempts after a failure that may be temporary.
        timeout_s: limit for one whole request, in seconds.
        connect_timeout_s: limit for connecting, in seconds.
        idle_timeout_s: limit between two parts of an answer, in seconds.
        max_bytes: largest picture accepted.
        max_redirects: redirects followed for one picture.
        max_wait_s: longest wait that a server may ask for (Retry-After), in seconds.
        backoff_s: wait before the first further attempt if the server asks for none, in seconds; doubled each time.
        allowed: networks to fetch from although they are not public.

    Raises:
        UsageError: a number is too small or too large, or an entry of `allowed` is not a network.
    """

    connections: int = 32
    per_host: int = 4
    retries: int = 3
    timeout_s: float = 60.0
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 15.0
    max_bytes: int = 32 * 2**20
    max_redirects: int = 5
    max_wait_s: float = 60.0
    backoff_s: float = 0.5
    allowed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--link-connections", self.connections, 1),
            ("--links-per-host", self.per_host, 1),
            ("--link-retries", self.retries, 0),
        ):
            if value < least:
                raise UsageError(f"{option} {value}: must be at least {least}")
        if self.timeout_s <= 0:
            raise UsageError(f"--link-timeout-s {self.timeout_s:g}: must be above 0")
        if not 0 < self.max_bytes <= MAX_BYTES:
            raise UsageError(
                f"--link-max-mb {self.max_bytes / 2**20:g}: must be above 0 and at most {MAX_BYTES // 2**20}"
            )
        parse_networks(self.allowed)

    def share(self, num_workers: int) -> LinkLimits:
        """One worker's share of the limits; `num_workers` must not exceed `connections` or `per_host`."""
        return replace(self, connections=self.connections // num_workers, per_host=self.per_host // num_workers)


@dataclass(frozen=True)
class Options:
    """How a source is read, where names do not decide it.

    Attributes:
        label_column: column (of a list or Parquet) or field (of JSON beside a picture) with the label; None: by name.
        key_column: column with the key; None: by name.
        image_column: column, or suffix of the WebDataset member, with the picture; None: by name.
        label_level: level of the folder that is the label: see `library.sources.labels.from_folders`.
        links: limits for fetching pictures from web addresses.
    """

    label_column: str | None = None
    key_column: str | None = None
    image_column: str | None = None
    label_level: int | None = None
    links: LinkLimits = LinkLimits()

    def refuse(self, kind: str, **hints: str) -> None:
        """Raises UsageError if an option named in `hints` is set, which has no effect on this kind of source."""
        for name, hint in hints.items():
            if getattr(self, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} has no effect on {kind}: {hint}")


@dataclass(frozen=True)
class Listing:
    """The pictures of a source, without their content.

    Attributes:
        kind: chooses the reader in `read_pictures`.
        index: one row per picture, sorted by key: INDEX_SCHEMA and the extra columns known so far (see `extras_of`).
        late: names and types of the extra columns that come with the pictures (`Read.extras`).
        skipped: number of skipped files by reason, one of `library.dataset.manifest.SKIPPED`.
        gzip_indexes: index of each gzip stream by URI, which the reader needs.
        notes: sentences for the user about choices that may be surprising.
    """

    kind: str
    index: pa.Table
    late: pa.Schema
    skipped: Counter[str]
    gzip_indexes: dict[str, bytes] = field(default_factory=dict[str, bytes])
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> dict[str, int]:
        """Number of pictures of each class by name, without the pictures that have no class."""
        counts = _compute.value_counts(self.index["label"]).to_pylist()
        return {item["values"]: item["counts"] for item in sorted(counts, key=_by_name) if item["values"] is not None}

    @property
    def columns(self) -> pa.Schema:
        """All extra columns that the dataset will have, in order."""
        known = extras_of(self.index.slice(0, 0)).schema
        return pa.schema([*known, *self.late])


def _by_name(item: dict[str, Any]) -> str:
    return item["values"] or ""


@dataclass(frozen=True)
class Read:
    """One picture, read from its source.

    Attributes:
        row: its row in the table passed to `read_pictures`.
        data: the encoded picture; None if nothing could be read.
        problem: why it cannot be used; None if it can. A reject keeps its data.
        extras: its values of the listing's `late` columns.
    """

    row: int
    data: bytes | None
    problem: BadPicture | None = None
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])


def extras_of(rows: pa.Table) -> pa.Table:
    """The extra columns of index rows, under their names in the dataset."""
    names = [name for name in rows.column_names if name.startswith(_EXTRA)]
    return rows.select(names).rename_columns([name[len(_EXTRA) :] for name in names])


def printable(name: str) -> str:
    """`name` with control characters and bytes that are not UTF-8 written as escapes like \\x1b."""
    return _UNPRINTABLE.sub(_escaped, name)


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python stores the undecodable byte 0xNN of a file name as U+DCNN.
    return f"\\x{code & 0xFF:02x}" if code < 0x80 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def output_name(name: str, used: Iterable[str] = ()) -> str:
    """The name of a source's column in the dataset: its own, changed if it is reserved or already in `used`."""
    name = printable(name)
    if name in RESERVED:
        name = f"source_{name}"
    while name in used:
        name += "_"
    return name


def finish(
    columns: Mapping[str, Any], extras: Mapping[str, pa.Array[Any]] | None = None, unit: str = "byte"
) -> pa.Table:
    """Builds the index of a listing: typed, sorted by key, and checked.

    Args:
        columns: values by name of INDEX_SCHEMA, all of the same length; missing columns are null.
        extras: the extra columns by their names in the source.
        unit: what `at` counts, byte or row.

    Raises:
        StriateError: two rows have the same key; names both places.
    """
    num_rows = len(columns["key"])
    arrays = {
        column.name: _array(columns[column.name], column.type)
        if column.name in columns
        else pa.nulls(num_rows, column.type)
        for column in INDEX_SCHEMA
    }
    for name, values in (extras or {}).items():
        arrays[_EXTRA + output_name(name, [used[len(_EXTRA) :] for used in arrays])] = values
    table = pa.table(arrays)
    keys = table.column("key")
    if any(_compute.less_equal(keys.slice(1), keys.slice(0, max(num_rows - 1, 0))).to_pylist()):
        table = table.take(_compute.sort_indices(table, [(name, "ascending") for name in ("key", "uri", "at")]))
    superseded = _compute.fill_null(_compute.starts_with(table["problem"], SUPERSEDED), False)
    _check_unique(table.filter(_compute.invert(superseded)), unit)
    return _with_limit(table) if unit == "byte" else table


def _array(values: Any, dtype: pa.DataType) -> Any:
    return values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, dtype)


def _check_unique(table: pa.Table, unit: str) -> None:
    keys = table.column("key")
    twice = _compute.equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0)))
    at = _compute.index(twice, True).as_py()
    if at >= 0:
        first, second = (
            f"{row['uri']} ({unit} {row['at']:,})" if row["at"] or unit == "row" else str(row["uri"])
            for row in table.slice(at, 2).select(["uri", "at"]).to_pylist()
        )
        raise StriateError(
            f"two pictures have the key '{keys.to_pylist()[at]}': {first} and {second}; "
            "rename one, or, if the source has a column of unique keys, name it with --key-column"
        )


def _with_limit(table: pa.Table) -> pa.Table:
    """Adds the problem `too_large` to rows larger than MAX_BYTES, so that they are not read."""
    too_large = _compute.and_(
        _compute.greater(table.column("size"), MAX_BYTES), _compute.is_null(table.column("problem"))
    )
    if not _compute.any(too_large).as_py():
        return table
    sizes = _compute.cast(table.column("size"), pa.string())
    texts = _compute.binary_join_element_wise("too_large: ", sizes, f" bytes; the limit is {MAX_BYTES:,}", "")
    problems = _compute.if_else(too_large, texts, table.column("problem"))
    return table.set_column(table.schema.get_field_index("problem"), "problem", problems)
