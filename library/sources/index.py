"""What a listing holds: one row a picture, in Arrow, and the checks every listing ends with."""

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

_compute: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them
MAX_BYTES = DEFAULT_LIMITS.max_bytes
_EXTRA = "extra."  # keeps a user's column `size` apart from ours; no INDEX_SCHEMA name begins so

#: The columns that the datasets themselves have; a source's column of the same name becomes `source_...`.
RESERVED = (*CORE_COLUMNS, *REJECT_COLUMNS, "split")

#: One row a picture. `uri` is the file or the container that holds it, `at` where in it (byte offset, or row number
#: in a Parquet file) and `size` its bytes (for Parquet an estimate). Rows with the same (uri, block) are cheap only
#: when they are read together; block is null where any order costs the same. `problem` is "slug: detail" for a row
#: known to be unusable. `stored` says how a zip member lies in its archive, `parts` where the other binary members of
#: a WebDataset sample are.
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


#: Begins the problem of a member that its archive holds again further on: the one problem with which two rows may
#: have one key.
SUPERSEDED = "duplicate_key: "


@dataclass(frozen=True)
class LinkLimits:
    """How pictures at web addresses are fetched.

    Attributes:
        connections: requests at once, in all.
        per_host: requests at once to one host.
        retries: further attempts after a failure that may pass.
        timeout_s: for one request as a whole.
        connect_timeout_s: until there is a connection.
        idle_timeout_s: between two pieces of an answer.
        max_bytes: of one picture.
        max_redirects: followed for one picture.
        max_wait_s: longest time that a server may ask to be left alone (Retry-After).
        backoff_s: before the first further attempt where the server does not say; doubled each time.
        allowed: networks that are no public ones and may be fetched from all the same.

    Raises:
        UsageError: a number that allows nothing, or `allowed` is no network.
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
                raise UsageError(f"{option} {value}: at least {least}")
        if self.timeout_s <= 0:
            raise UsageError(f"--link-timeout-s {self.timeout_s:g}: a time above 0")
        if not 0 < self.max_bytes <= MAX_BYTES:
            raise UsageError(f"--link-max-mb {self.max_bytes / 2**20:g}: above 0, and at most {MAX_BYTES // 2**20}")
        parse_networks(self.allowed)

    def share(self, num_workers: int) -> LinkLimits:
        """One worker's part, so that all together keep the limits; `num_workers` must exceed neither of them."""
        return replace(self, connections=self.connections // num_workers, per_host=self.per_host // num_workers)


@dataclass(frozen=True)
class Options:
    """Which columns (of a list or Parquet) or fields (of JSON beside the pictures) mean what; None: by their names.

    `label_level` takes the label from a folder whatever else there is: see `library.sources.labels.from_folders`.
    `links` limits how pictures at web addresses are fetched.
    """

    label_column: str | None = None
    key_column: str | None = None
    image_column: str | None = None
    label_level: int | None = None
    links: LinkLimits = LinkLimits()

    def refuse(self, kind: str, **hints: str) -> None:
        """Raise for each option in `hints` that is set: for this kind of source it would do nothing."""
        for name, hint in hints.items():
            if getattr(self, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} has no effect on {kind}: {hint}")


@dataclass(frozen=True)
class Listing:
    """What a source holds, without its pictures.

    Attributes:
        kind: which reader reads the pictures back; goes to `read_pictures`.
        index: INDEX_SCHEMA, and the extra columns that the listing already knows (see `extras_of`). Sorted by key.
        late: the extra columns that come with the pictures (`Read.extras`), with their types.
        skipped: how many files were passed over, by reason: one of `library.dataset.manifest.SKIPPED`.
        hints: by URI of a container, what the reader needs to find its way in it (an index of a gzip stream).
        notes: sentences for the user about what was found and may surprise.
    """

    kind: str
    index: pa.Table
    late: pa.Schema
    skipped: Counter[str]
    hints: dict[str, bytes] = field(default_factory=dict[str, bytes])
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> dict[str, int]:
        """How many pictures each class has, by name; those without a class are not counted here."""
        counts = _compute.value_counts(self.index["label"]).to_pylist()
        return {item["values"]: item["counts"] for item in sorted(counts, key=_by_name) if item["values"] is not None}

    @property
    def columns(self) -> pa.Schema:
        """Every extra column of the dataset to be, in order."""
        known = extras_of(self.index.slice(0, 0)).schema
        return pa.schema([*known, *self.late])


def _by_name(item: dict[str, Any]) -> str:
    return item["values"] or ""


@dataclass(frozen=True)
class Read:
    """One picture as it was read.

    Attributes:
        row: its row in the table that was asked for.
        data: the encoded picture, or None when nothing could be read.
        problem: why it cannot be used, or None. A reject keeps its bytes where there are any.
        extras: the values of the `late` columns that this picture has.
    """

    row: int
    data: bytes | None
    problem: BadPicture | None = None
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])


def extras_of(rows: pa.Table) -> pa.Table:
    """The extra columns of index rows under the names that the dataset gives them."""
    names = [name for name in rows.column_names if name.startswith(_EXTRA)]
    return rows.select(names).rename_columns([name[len(_EXTRA) :] for name in names])


def printable(name: str) -> str:
    """`name` without control characters and without bytes that are not UTF-8: each is written as \\x1b."""
    return _UNPRINTABLE.sub(_escaped, name)


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python holds the undecodable byte 0xNN of a file name as U+DCNN.
    return f"\\x{code & 0xFF:02x}" if code < 0x80 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def output_name(name: str, taken: Iterable[str] = ()) -> str:
    """The name of a source's column in the dataset: its own, unless the dataset means something else by it."""
    name = printable(name)
    if name in RESERVED:
        name = f"source_{name}"
    while name in taken:
        name += "_"
    return name


def finish(
    columns: Mapping[str, Any], extras: Mapping[str, pa.Array[Any]] | None = None, unit: str = "byte"
) -> pa.Table:
    """The index of a listing: typed, without clashes, sorted by key.

    Args:
        columns: values by name of INDEX_SCHEMA, all of one length; those that are not given are null.
        extras: the extra columns by their names in the source.
        unit: what `at` counts, for the message about two rows with one key.

    Raises:
        StriateError: when two rows have the same key; says where both are.
    """
    num_rows = len(columns["key"])
    arrays = {
        column.name: _array(columns[column.name], column.type)
        if column.name in columns
        else pa.nulls(num_rows, column.type)
        for column in INDEX_SCHEMA
    }
    for name, values in (extras or {}).items():
        arrays[_EXTRA + output_name(name, [taken[len(_EXTRA) :] for taken in arrays])] = values
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
            "rename one, or name a column with unique keys by --key-column where the source has one"
        )


def _with_limit(table: pa.Table) -> pa.Table:
    """Mark what is too large to be a picture, so that nobody reads it."""
    too_large = _compute.and_(
        _compute.greater(table.column("size"), MAX_BYTES), _compute.is_null(table.column("problem"))
    )
    if not _compute.any(too_large).as_py():
        return table
    sizes = _compute.cast(table.column("size"), pa.string())
    texts = _compute.binary_join_element_wise("too_large: ", sizes, f" bytes; at most {MAX_BYTES:,} are read", "")
    problems = _compute.if_else(too_large, texts, table.column("problem"))
    return table.set_column(table.schema.get_field_index("problem"), "problem", problems)
