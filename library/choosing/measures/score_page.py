"""The page of `striate measure --report`: histograms of every score, and the pictures at both ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from library import storage
from library.choosing.measures.distribution import Distribution, by_shard, distributions
from library.choosing.measures.measuring import MEASURES
from library.choosing.measures.side_table import Parts
from library.dataset.manifest import VERSIONS, FileEntry, Manifest
from library.errors import BadPicture, StriateError
from library.evaluation.report.charts import histogram_chart
from library.evaluation.report.templates import base64_text, template
from library.imaging import codec
from library.imaging.contact_sheet import small_copy

_TILE_PX = 160
_SELECTORS = {
    "width": "min_size(short_side=64)",
    "height": "min_size(short_side=64)",
    "num_bytes": "file_size_between(min_bytes=1000)",
    "aspect_ratio": "aspect_ratio_between(low=0.35, high=2.9)",
    "brightness": "brightness_between(low=0.1, high=0.9)",
    "brightness_p5": "not_bright",
    "brightness_p99": "not_dark",
    "contrast": "contrast_at_least(0.05)",
    "entropy": "min_entropy(3)",
    "sharpness": "not_blurry",
    "colourfulness": "colourfulness_between(low=5)",
    "largest_std": "not_blank",
}


@dataclass(frozen=True)
class _View:
    """What the page shows of one score."""

    one: Distribution
    meaning: str
    selector: str
    chart: Markup
    show: Callable[[float], str]


def distributions_of(parts: Parts, names: Sequence[str]) -> list[Distribution]:
    """Returns the distributions of those measures that are numbers; raises StriateError if a file is damaged."""
    numbers = [name for name in names if _is_number(name)]
    return distributions(lambda: parts.read(["key", *numbers]), numbers)


def measures_page(
    dataset: str, manifest: Manifest, table: str, measured: Sequence[Distribution], rejected: Mapping[str, int]
) -> str:
    """Returns the page of a dataset's side table as one HTML document.

    Args:
        dataset: its URI.
        manifest: its manifest.
        table: URI of the side table.
        measured: from `distributions_of`.
        rejected: pictures that could not be measured, by reason.

    Raises:
        StriateError: a shard is damaged.
    """
    return template("library.choosing.measures", "measures.html").render(
        title=f"Measures of {PurePosixPath(dataset).name}",
        rows=manifest.rows,
        rejected=dict(rejected),
        table=table,
        views=[_view(one) for one in measured],
        images=_images(dataset, manifest.shards, measured),
        number="{:,}".format,
        base64=base64_text,
        footer=f"{dataset}, {manifest.digest[:12]}; striate {VERSIONS['striate']}",
    )


def _is_number(name: str) -> bool:
    kind = MEASURES[name].type
    return pa.types.is_floating(kind) or (pa.types.is_integer(kind) and not pa.types.is_uint64(kind))


def _view(one: Distribution) -> _View:
    whole = pa.types.is_integer(MEASURES[one.name].type)
    show: Callable[[float], str] = (lambda value: f"{value:,.0f}") if whole else (lambda value: f"{value:,.4g}")
    title = one.name.replace("_", " ") + (" (logarithmic)" if one.log else "")
    chart = histogram_chart(one.edges, one.counts, x_title=title, show=show, log=one.log, salt=one.name)
    return _View(one, MEASURES[one.name].meaning, _SELECTORS.get(one.name, ""), chart, show)


def _images(
    dataset: str, shards: Sequence[FileEntry], measured: Sequence[Distribution]
) -> dict[tuple[int, int], tuple[bytes, str] | None]:
    """Returns small copies by shard and row; None for a picture that cannot be decoded."""
    images: dict[tuple[int, int], tuple[bytes, str] | None] = {}
    for shard, rows in by_shard(measured).items():
        for row, data in zip(rows, _read_rows(storage.join(dataset, shards[shard].name), rows), strict=True):
            try:
                images[shard, row] = small_copy(codec.decode(data), _TILE_PX)
            except BadPicture:
                images[shard, row] = None
    return images


def _read_rows(uri: str, rows: Sequence[int]) -> list[bytes]:
    """Returns the encoded pictures of a few rows; reads only the row groups that hold them."""
    wanted, pictures, first = set(rows), dict[int, bytes](), 0
    try:
        with storage.open_read(uri) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            for group in range(parquet.metadata.num_row_groups):
                number = parquet.metadata.row_group(group).num_rows
                inside = sorted(row for row in wanted if first <= row < first + number)
                if inside:
                    image = parquet.read_row_group(group, ["image"], use_threads=False)["image"]
                    pictures |= {row: image[row - first].as_py()["bytes"] or b"" for row in inside}
                first += number
    except (pa.ArrowException, OSError) as error:
        raise StriateError(f"{uri} cannot be read: {error}") from error
    return [pictures[row] for row in rows]
