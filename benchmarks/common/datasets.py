"""Writes the datasets of benchmarks without Ray: given pictures, repeated as often as needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from library.dataset.manifest import VERSIONS, FileEntry, Job, Manifest, Tally, save_manifest
from library.dataset.record import ImageRecord, dataset_schema, table_of
from library.dataset.shards import SUFFIX, ShardWriter, shard_name
from library.imaging import codec

_ROWS_AT_ONCE = 16


def write_dataset(
    pictures: Sequence[tuple[bytes, str]], folder: Path, count: int, shard_mb: float, source: str
) -> None:
    """Writes a dataset of `count` pictures, which repeat the given ones under new keys.

    Args:
        pictures: encoded pictures with their classes.
        folder: is created if it does not exist.
        count: pictures to write.
        shard_mb: size of a shard in MiB, from the mean size of the pictures.
        source: where the pictures come from, for the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    schema = dataset_schema([])
    headers = [codec.probe(data) for data, _ in pictures]
    records = [
        ImageRecord(str(number), data, str(number), label, header, {})
        for number, ((data, label), header) in enumerate(zip(pictures, headers, strict=True))
    ]
    table = table_of(records, schema)
    mean_bytes = sum(len(data) for data, _ in pictures) / len(pictures)
    shard_rows = max(1, int(shard_mb * 2**20 / mean_bytes))
    entries: list[FileEntry] = []
    for number, first in enumerate(range(0, count, shard_rows)):
        with ShardWriter(str(folder), shard_name(number) + SUFFIX, schema) as writer:
            for begin in range(first, min(first + shard_rows, count), _ROWS_AT_ONCE):
                rows = np.arange(begin, min(begin + _ROWS_AT_ONCE, first + shard_rows, count))
                keys = pa.array([f"{row:07d}" for row in rows])
                batch = table.take(pa.array(rows % len(records)))
                writer.add(batch.set_column(schema.get_field_index("key"), schema.field("key"), keys))
        entries.append(writer.entry)
    classes = Counter(pictures[row % len(records)][1] for row in range(count))
    channels = Counter(str(headers[row % len(records)].channels) for row in range(count))
    tally = Tally(rows_in=count, rows_out=count, classes=dict(sorted(classes.items())), channels=dict(channels))
    job = Job(kind="ingest", source=source)
    save_manifest(str(folder), Manifest(complete=True, jobs=[job], tally=tally, shards=entries, versions=VERSIONS))
