"""The output of commands: text for people, or one JSON document on stdout for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from cluster.console import Terminal, json_text, say, visible
from library import storage
from library.dataset.manifest import Manifest, skipped_text

#: For text that people read; with --json only the document goes to stdout.
stderr = Terminal(stderr=True)
_MOST_NAMES = 20


def emit_json(value: Any) -> None:
    """Prints one JSON document on stdout."""
    say(json_text(value))


def size(num_bytes: float) -> str:
    """Returns `1.3 GB`, in powers of 1000 as disks and object stores count."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 999.5 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 99.5 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def counted(number: int, noun: str) -> str:
    """Returns `1 shard` or `1,200 shards`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def balance(manifest: Manifest) -> str:
    """Returns `1,000 in = 990 out + 7 dropped + 3 rejected`; after `striate augment` the counts are of copies."""
    tally = manifest.tally
    last = manifest.jobs[-1] if manifest.jobs else None
    copies = _copies(last.options) if last and last.kind == "augment" else 1
    pictures = f"{counted(tally.rows_in // copies, 'picture')} x {copies} = " if copies > 1 else ""
    dropped, rejected = sum(tally.dropped.values()), sum(tally.rejected.values())
    return f"{pictures}{tally.rows_in:,} in = {tally.rows_out:,} out + {dropped:,} dropped + {rejected:,} rejected"


def _copies(options: Mapping[str, Any]) -> int:
    """Returns the number of pictures that each picture becomes; 1 if a manifest from elsewhere does not record it."""
    copies, keep_original = options.get("copies"), options.get("keep_original", False)
    if type(copies) is not int or not isinstance(keep_original, int):
        return 1
    return copies + int(keep_original)


def ranked(counts: Mapping[str, int]) -> str:
    """Returns `cat 500, dog 499`: the 20 largest counts, largest first."""
    first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(first) - _MOST_NAMES:,} more" if len(first) > _MOST_NAMES else ""
    return ", ".join(f"{visible(name)} {count:,}" for name, count in first[:_MOST_NAMES]) + more


def classes(counts: Mapping[str, int], pictures: int) -> str:
    """Returns `2 classes: cat 500, dog 499; 1 picture without a class`."""
    without = pictures - sum(counts.values())
    if not pictures:
        return "no classes: no picture is left"
    if not counts:
        return "no classes: no picture has a label"
    number = "1 class" if len(counts) == 1 else f"{len(counts):,} classes"
    return f"{number}: {ranked(counts)}" + (f"; {counted(without, 'picture')} without a class" if without else "")


def reasons(title: str, counts: Mapping[str, int]) -> str:
    """Returns `rejected: truncated 2, not_an_image 1`, largest count first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{title}: " + ", ".join(f"{name} {number:,}" for name, number in ranked)


_NOTES = {
    "boxes_dropped": "a box was dropped, because less of it is left in the picture than --min-box-share",
    "more_pages": "the file has several pages or frames; only the first is kept",
    "repaired": "stray bytes were cut out of the file; the pixels are whole (--repair)",
}


def left_out(manifest: Manifest) -> Iterator[str]:
    """Yields one line each for pictures dropped, rejected, kept only in part, and skipped, if there are any."""
    for title, counts in (("dropped", manifest.tally.dropped), ("rejected", manifest.tally.rejected)):
        if counts:
            yield reasons(title, counts)
    for name, number in manifest.tally.noted.items():
        yield f"{counted(number, 'picture')}: {_NOTES.get(name, name)}"
    if manifest.skipped:
        yield skipped_text(manifest.skipped)


def time_spent(runs: Iterable[Mapping[str, Any]]) -> Table | None:
    """Returns a table of the time in each stage, summed over workers; None if nothing was run."""
    seconds: Counter[str] = Counter()
    for run in runs:
        seconds.update(run.get("seconds", {}))
    whole = sum(seconds.values())
    if not whole:
        return None
    table = Table(title="where the time went (all workers)", title_justify="left", box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for stage, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(escape(stage), f"{spent:.2f}", f"{spent / whole:.0%}")
    return table


def print_time(runs: Sequence[Mapping[str, Any]]) -> None:
    """Prints how many pictures a job made in how many seconds, and where the time went; nothing if nothing was run."""
    table = time_spent(runs)
    if table is not None:
        pictures = sum(run.get("pictures_made", 0) for run in runs)
        say(f"{pictures:,} pictures in {runs[0]['wall_s']:.1f} s on {counted(runs[0]['workers'], 'worker')}")
        Terminal().print(table)


def facts(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints named values, one per line or as JSON."""
    if as_json:
        emit_json(values)
        return
    for name, value in values.items():
        if isinstance(value, Mapping) and all(isinstance(item, int) for item in value.values()):
            value = ranked(value)
        elif isinstance(value, Mapping):
            value = ", ".join(f"{key}: {_fact(item)}" for key, item in value.items())
        say(f"{name.replace('_', ' '):16} {_fact(value)}")


def _fact(value: object) -> str:
    """Returns a value for people: a table as `shards 1, pictures 16`, a list as `a, b`, an empty one as `none`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def finished(manifests: Mapping[str, Manifest], *, as_json: bool, notes: Sequence[str] | None = None) -> None:
    """Prints the closing message of a job that wrote these datasets.

    Args:
        manifests: manifests of the datasets, by URI.
        as_json: whether to print JSON.
        notes: of an ingest, the notes about its source, for the JSON; the text then lists the classes.
    """
    if as_json:
        document = summaries(manifests)
        emit_json(document if notes is None else {**document, "notes": list(notes)})
        return
    for dataset, manifest in manifests.items():
        tally = manifest.tally
        say(
            f"{dataset}: {counted(len(manifest.shards), 'shard')}, {counted(tally.rows_out, 'picture')}, "
            f"{size(manifest.bytes)}"
        )
        say(f"  {balance(manifest)}")
        if notes is not None:
            say(f"  {classes(tally.classes, tally.rows_out)}")
        for line in left_out(manifest):
            say(f"  {line}")
    runs = [manifest.run for manifest in manifests.values()]
    resumed, pictures = (sum(run.get(name, 0) for run in runs) for name in ("shards_resumed", "pictures_made"))
    if resumed:
        say(f"{resumed:,} of {sum(run['shards'] for run in runs):,} shards were done before")
    if pictures:
        print_time(runs)


def summaries(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Returns manifests without their lists of shards, for --json: one document, or `{"datasets": [...]}` for several
    splits."""
    documents = {dataset: _summary(dataset, manifest) for dataset, manifest in manifests.items()}
    if len(documents) == 1:
        return next(iter(documents.values()))
    return {"datasets": list(documents.values())}


def _summary(dataset: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "dataset_id": storage.uri_id(dataset),
        "digest": manifest.digest,
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "shards": len(manifest.shards),
        **manifest.model_dump(exclude={"shards", "rejects"}),
    }
