"""Contact sheets of a dataset: plain, before and after a pipeline, or with random variants; `striate show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from library import storage
from library.dataset.manifest import load_manifest
from library.dataset.shards import ShardReader
from library.errors import BadPicture, UsageError
from library.imaging import codec
from library.imaging.contact_sheet import Tile, draw_sheet
from library.pipeline import Pipeline
from library.pipeline.annotations import (
    Annotations,
    Followed,
    Wanted,
    drawn_annotations,
    find_annotations,
    marks_of,
)
from library.pipeline.augmentation import Augmenter, parse_augmentation
from library.pipeline.batch import BatchResult, run_batch
from library.steps.base import with_nested

_PAIRS_A_ROW = 3
_PLAIN_A_ROW = 6
_COUNT = 12
_AUGMENTED_COUNT = 4
_MOST = 200
_BY_NAME = Wanted()
_MOST_VARIANTS, _MOST_AUGMENTED_TILES = 64, 400


@dataclass(frozen=True)
class Sheet:
    """A drawn sheet, and the facts about its pictures that --json prints."""

    png: bytes
    pictures: list[dict[str, Any]]


def contact_sheet(
    dataset: str,
    steps: str = "",
    *,
    count: int | None = None,
    tile_px: int = 160,
    keys: Sequence[str] = (),
    label: str | None = None,
    augment: int | None = None,
    seed: int | None = None,
    wanted: Wanted = _BY_NAME,
) -> Sheet:
    """Draws pictures of a dataset; with steps, each one before and after them, or with a row of random variants.

    Masks and boxes are drawn over the pictures.

    Args:
        dataset: URI.
        steps: pipeline to show; empty to show the pictures only.
        count: number of pictures (12, or 4 with `augment`), from the start of the dataset, which ingest has shuffled.
        tile_px: side of a tile in pixels.
        keys: show exactly these pictures instead.
        label: only pictures of this class.
        augment: number of random variants of each picture: the copies that `striate augment` writes.
        seed: seed of the variants (0).
        wanted: the columns of masks and boxes, where they are not named `mask` and `boxes`.

    Raises:
        UsageError: when no picture matches or a key is missing, `count` is not 1 to 200 or is combined with `keys`,
            or `augment` does not suit `steps`.
    """
    if keys and count is not None:
        raise UsageError("--count has no effect beside --key: use only one of them")
    if seed is not None and augment is None:
        raise UsageError("--seed has no effect without --augment: nothing else here is random")
    default = _COUNT if augment is None else _AUGMENTED_COUNT
    number = len(set(keys)) if keys else default if count is None else count
    if len(set(keys)) > _MOST:
        raise UsageError(f"--key is given {len(set(keys)):,} times; a sheet takes {_MOST} pictures at most")
    if not 1 <= number <= _MOST or not 16 <= tile_px <= 1024:
        raise UsageError(f"--count takes 1 to {_MOST} pictures, --tile-px 16 to 1024 pixels")
    if augment is not None:
        augmenter = _augmenter(steps, augment, number, seed or 0)
        table = _chosen(storage.normalize(dataset), number, set(keys), label)
        drawn = drawn_annotations(table.schema, wanted)
        find_annotations(table.schema, augmenter.pipeline.steps, wanted if _moves(augmenter.pipeline) else _BY_NAME)
        return _augmented_sheet(table, augmenter, augment, tile_px, drawn)
    pipeline = _filters(steps) if steps.strip() else None
    table = _chosen(storage.normalize(dataset), number, set(keys), label)
    drawn = drawn_annotations(table.schema, wanted)
    followed = Annotations()
    if pipeline is not None and _moves(pipeline):
        followed = find_annotations(table.schema, pipeline.steps, wanted)
    tiles: list[Tile] = []
    facts: list[dict[str, Any]] = []
    for row in range(table.num_rows):
        one = table.slice(row, 1)
        facts.append(_facts(one))
        tiles.append(_tile(one, _caption(one), drawn))
        if pipeline is not None:
            result = run_batch(pipeline.steps, one, annotations=followed)
            tiles.append(_after(result, drawn))
            facts[-1]["result"] = tiles[-1].note or tiles[-1].caption
    across = 2 * min(_PAIRS_A_ROW, table.num_rows) if pipeline is not None else min(_PLAIN_A_ROW, table.num_rows)
    rows = [tiles[first : first + across] for first in range(0, len(tiles), across)]
    headings = ["before", "after"] * (across // 2) if pipeline is not None else []
    png, _ = codec.encode(draw_sheet(rows, tile_px=tile_px, headings=headings), codec.Encoding("png"))
    return Sheet(png, facts)


def _moves(pipeline: Pipeline) -> bool:
    return not all(step.still for step in with_nested(pipeline.steps))


def _filters(steps: str) -> Pipeline:
    pipeline = Pipeline.parse(steps)
    if any(step.kind == "augmentation" for step in pipeline.steps):
        raise UsageError(f"'{pipeline}' is random: give the number of variants to draw, as in --augment 8")
    return pipeline


def _augmenter(steps: str, variants: int, pictures: int, seed: int) -> Augmenter:
    if not steps.strip():
        raise UsageError('--augment needs random steps: --steps "rotate(15) | flip" --augment 8')
    if not 1 <= variants <= _MOST_VARIANTS or pictures * (variants + 1) > _MOST_AUGMENTED_TILES:
        raise UsageError(
            f"--augment takes 1 to {_MOST_VARIANTS} variants, and a sheet {_MOST_AUGMENTED_TILES} tiles at most; "
            f"{pictures} pictures with {variants} variants are {pictures * (variants + 1)}"
        )
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be at least 0")
    return Augmenter(parse_augmentation(steps), seed)


def _augmented_sheet(table: pa.Table, augmenter: Augmenter, variants: int, tile_px: int, drawn: Annotations) -> Sheet:
    """Draws one row for each picture: the original, then its variants."""
    rows: list[list[Tile]] = []
    facts: list[dict[str, Any]] = []
    for row in range(table.num_rows):
        one = table.slice(row, 1)
        tiles = [_variant(one, augmenter, number, drawn) for number in range(1, variants + 1)]
        facts.append(_facts(one) | {"variants": [tile.note or tile.caption for tile in tiles]})
        rows.append([_tile(one, _caption(one), drawn), *tiles])
    headings = ["original", *(f"#{number}" for number in range(1, variants + 1))]
    png, _ = codec.encode(draw_sheet(rows, tile_px=tile_px, headings=headings), codec.Encoding("png"))
    return Sheet(png, facts)


def _variant(row: pa.Table, augmenter: Augmenter, number: int, drawn: Annotations) -> Tile:
    try:
        pixels = codec.decode(row["image"][0].as_py()["bytes"])
        followed = Followed(drawn, _values(row, drawn), (pixels.shape[0], pixels.shape[1]))
        pixels = augmenter.apply_with(pixels, number, row["key"][0].as_py(), followed)
        marks = marks_of(drawn, followed.columns())
    except BadPicture as bad:
        return Tile(None, "rejected", f"rejected: {bad.reason}")
    height, width, channels = pixels.shape
    return Tile(pixels, f"{width}x{height}x{channels}", marks=marks)


def _values(row: pa.Table, drawn: Annotations) -> dict[str, Any]:
    return {name: row[name][0].as_py() for name in drawn.names}


def _caption(row: pa.Table) -> str:
    key, label = row["key"][0].as_py(), row["label"][0].as_py()
    return f"{label}  {key}" if label else key


def _facts(row: pa.Table) -> dict[str, Any]:
    return {name: row[name][0].as_py() for name in ("key", "label", "width", "height")}


def _chosen(dataset: str, count: int, keys: set[str], label: str | None) -> pa.Table:
    """Returns the first `count` rows of the dataset that have one of the keys and the label.

    Raises:
        UsageError: when there is none, or a key is missing.
    """
    manifest = load_manifest(dataset)
    tables: list[pa.Table] = []
    left = count
    for table in _row_groups(dataset, [shard.name for shard in manifest.shards]):
        matches = [
            row
            for row, (key, name) in enumerate(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))
            if (not keys or key in keys) and (label is None or name == label)
        ][:left]
        tables.append(table.take(pa.array(matches, pa.int64())))
        left -= len(matches)
        if left == 0:
            break
    if left == count:
        request = f" with the keys {', '.join(sorted(keys))}" if keys else f" with the label '{label}'" if label else ""
        classes = ", ".join(list(manifest.tally.classes)[:12])
        raise UsageError(f"{dataset} has no picture{request}; its classes are: {classes or 'none'}")
    chosen = pa.concat_tables(tables)
    missing = keys.difference(chosen["key"].to_pylist())
    if missing:
        raise UsageError(f"{dataset} has no picture with the keys {', '.join(sorted(missing))}")
    return chosen


def _row_groups(dataset: str, names: Sequence[str]) -> Iterator[pa.Table]:
    for name in names:
        yield from ShardReader(storage.join(dataset, name))


def _tile(row: pa.Table, caption: str, drawn: Annotations) -> Tile:
    try:
        pixels = codec.decode(row["image"][0].as_py()["bytes"])
    except BadPicture as bad:
        return Tile(None, caption, bad.reason)
    try:
        return Tile(pixels, caption, marks=marks_of(drawn, _values(row, drawn)))
    except BadPicture as bad:
        return Tile(pixels, f"mask: {bad.reason}  {caption}")


def _after(result: BatchResult, drawn: Annotations) -> Tile:
    if result.dropped:
        return Tile(None, "dropped", f"dropped: {next(iter(result.dropped))}")
    if result.rejected:
        return Tile(None, "rejected", f"rejected: {next(iter(result.rejected))}")
    row = result.table
    size = f"{row['width'][0]}x{row['height'][0]}x{row['channels'][0]} {row['format'][0]}"
    return _tile(row, size, drawn)
