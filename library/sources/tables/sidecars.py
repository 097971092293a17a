"""What lies beside a picture and speaks of it: NAME.cls, NAME.json, NAME.txt; and the samples of WebDataset.

One rule for folders and archives: a sidecar has the stem of a picture in the same folder. A text without a picture is
passed over and counted, as are README.md, labels.csv and the like.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from library.sources.entries import (
    MAX_SIDECAR_BYTES,
    PICTURE_SUFFIXES,
    SIDECAR_SUFFIXES,
    Entries,
    is_other_name,
    is_picture_name,
    suffix_of,
)
from library.sources.index import SUPERSEDED, Options, output_name
from library.sources.labels import split_of
from library.sources.tables.columns import label_text

_LABEL_FIELDS = ("label", "class")
_MAIN_NAMES = ("image", "img", "input", "rgb", "picture", "photo")


@dataclass
class Sample:
    """Which entries of a container make one row.

    Attributes:
        key: its path below the container.
        row: the entry of the picture (or of a file that is nobody's sidecar).
        sidecars: entries by suffix: cls, json, txt; in WebDataset also with a name: outputs.txt.
        parts: other binary members by column name.
    """

    key: str
    row: int
    sidecars: Mapping[str, int] = field(default_factory=dict[str, int])
    parts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass
class Facts:
    """What the sidecars of one picture say."""

    label: str | None = None
    split: str | None = None
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    problem: str | None = None


def samples(entries: Entries, may_be_webdataset: bool, main_suffix: str | None = None) -> tuple[bool, list[Sample]]:
    """Group the files of one container into samples. Files that are no part of one are counted in `entries.skipped`.

    Of a name that an archive holds several times the last counts, as when it is unpacked; each earlier picture is a
    sample of its own with a problem, so that it is a reject.

    Args:
        entries: the container's files.
        may_be_webdataset: whether the names may follow WebDataset (tar): a sample's members share everything up to
            the first dot, and the key is that.
        main_suffix: in WebDataset, which member is the picture (`jpg`, `image.png`); None: found by name.

    Returns:
        Whether it is WebDataset, and the samples in the order of their pictures.
    """
    superseded = _superseded(entries)
    gone = set(superseded)
    rows = [row for row in range(len(entries)) if row not in gone]
    texts = any(suffix_of(path) in SIDECAR_SUFFIXES for path in entries.path)
    if may_be_webdataset and (texts or main_suffix is not None):
        groups, repeated = _by_first_dot(entries, [*superseded, *rows])
        if main_suffix is not None or _is_webdataset(groups):
            for key in [key for key, members in groups.items() if _is_no_sample(key, members)]:
                entries.skipped["beside"] += len(groups.pop(key))
            found = [_sample(entries, key, members, main_suffix) for key, members in groups.items()]
            return True, [*found, *_rejects(entries, repeated)]
    beside = _sidecars(entries, rows)
    used = {row for found in beside.values() for row in found.values()}
    kept: list[Sample] = []
    for row in rows:
        path = entries.path[row]
        if is_picture_name(path):
            kept.append(Sample(path, row, beside.get(posixpath.splitext(path)[0], {})))
        elif not is_other_name(path):
            kept.append(Sample(path, row))
        elif row not in used:
            entries.skipped["beside"] += 1
    return False, [*kept, *_rejects(entries, [(entries.path[row], row) for row in superseded])]


def _superseded(entries: Entries) -> list[int]:
    """Members whose name comes again further on. In a folder, where each file has a URI of its own, there are none."""
    if entries.uri[:1] != entries.uri[-1:]:
        return []
    last: dict[str, int] = {}
    found: list[int] = []
    for row, path in enumerate(entries.path):
        if path in last:
            found.append(last[path])
        last[path] = row
    return found


def _rejects(entries: Entries, superseded: Collection[tuple[str, int]]) -> Iterator[Sample]:
    """What a later member of the same name stands for: a picture is a row with a problem, a text beside one is not."""
    for key, row in superseded:
        if is_other_name(entries.path[row]):
            entries.skipped["repeated"] += 1
        else:
            entries.problem[row] = f"{SUPERSEDED}the archive holds '{entries.path[row]}' again; the last one is taken"
            yield Sample(key, row)


def _sidecars(entries: Entries, rows: Collection[int]) -> dict[str, dict[str, int]]:
    """Sidecars by the stem of their pictures, and by suffix."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        path = entries.path[row]
        if suffix_of(path) in SIDECAR_SUFFIXES:
            found.setdefault(posixpath.splitext(path)[0], {})[suffix_of(path)] = row
    if not found:
        return {}
    pictures = (posixpath.splitext(path)[0] for path in entries.path if is_picture_name(path))
    return {stem: found[stem] for stem in pictures if stem in found}


def _by_first_dot(entries: Entries, rows: Iterable[int]) -> tuple[dict[str, dict[str, int]], list[tuple[str, int]]]:
    """Members by key and suffix, as WebDataset splits names; and each that a later one takes the place of."""
    groups: dict[str, dict[str, int]] = {}
    repeated: list[tuple[str, int]] = []
    for row in rows:
        folder, name = posixpath.split(entries.path[row])
        stem, _, suffix = name.partition(".")
        key = posixpath.join(folder, stem)
        group = groups.setdefault(key, {})
        if suffix.lower() in group:
            repeated.append((key, group[suffix.lower()]))
        group[suffix.lower()] = row
    return groups, repeated


def _is_webdataset(groups: dict[str, dict[str, int]]) -> bool:
    """Whether a name up to its first dot is a sample: cat.0.jpg, cat.1.jpg, cat.0.txt is a folder, not one sample."""
    some = False
    for members in groups.values():
        pictures = [suffix for suffix in members if suffix.rpartition(".")[2] in PICTURE_SUFFIXES]
        has_text = not SIDECAR_SUFFIXES.isdisjoint(members) or _has_named_text(members, pictures)
        if len(pictures) > 1 and not has_text and all("." in suffix for suffix in pictures):
            return False
        some = some or (has_text and bool(pictures))
    return some


def _has_named_text(members: Collection[str], pictures: Collection[str]) -> bool:
    """Whether a sample is X.input.jpg with X.outputs.txt: a text with a name of its own, which is no number."""
    names = {suffix.rpartition(".")[0] for suffix in pictures}
    texts = {suffix.rpartition(".")[0] for suffix in members if suffix.rpartition(".")[2] in SIDECAR_SUFFIXES}
    one = len(pictures) == 1 or not names.isdisjoint(_MAIN_NAMES)
    return one and any(text and not text.isdigit() and text not in names for text in texts)


def _is_no_sample(key: str, members: Collection[str]) -> bool:
    """Whether a group is a file that lies among the samples: README.md, sizes.csv; a text of a lost picture is one."""
    if is_other_name(posixpath.basename(key)):
        return True
    texts = any(suffix.rpartition(".")[2] in SIDECAR_SUFFIXES for suffix in members)
    return not texts and all(is_other_name(f"{key}.{suffix}") for suffix in members)


def _sample(entries: Entries, key: str, members: dict[str, int], main_suffix: str | None) -> Sample:
    main = _main(members, main_suffix)
    sidecars: dict[str, int] = {}
    parts: dict[str, int] = {}
    for suffix, row in members.items():
        if suffix == main:
            continue
        named = "." in suffix
        text = suffix.rpartition(".")[2] in SIDECAR_SUFFIXES
        if text and not (named and entries.size[row] > MAX_SIDECAR_BYTES):
            sidecars[suffix] = row
        else:
            parts[_part_name(suffix, parts)] = row
    return Sample(key, members[main], sidecars, parts)


def _main(members: Collection[str], wanted: str | None) -> str:
    """The suffix of the member that is the picture; the first member where there is none."""
    if wanted is not None and wanted.lower() in members:
        return wanted.lower()
    pictures = [suffix for suffix in members if suffix.rpartition(".")[2] in PICTURE_SUFFIXES]
    pictures.sort(key=lambda suffix: ("." in suffix, suffix.partition(".")[0] not in _MAIN_NAMES))
    return pictures[0] if pictures else next(iter(members))


def _part_name(suffix: str, taken: Collection[str]) -> str:
    """`mask.png` is the column `mask`, `seg.cls` is `seg_cls`; a second `mask` keeps its suffix."""
    name, _, last = suffix.rpartition(".")
    short = name if name and last in PICTURE_SUFFIXES else suffix
    column = output_name(short.replace(".", "_") or "member")
    return column if column not in taken else output_name(suffix.replace(".", "_"), taken)


def facts(texts: Mapping[str, bytes], options: Options, known: Mapping[str, Any]) -> Facts:
    """Read the sidecars of one picture.

    Args:
        texts: content by suffix.
        options: `label_column` names the field of the JSON that is the label.
        known: fields that are known already, from a table.

    Returns:
        What they say. Damage is a problem of the picture: a label is not guessed.
    """
    try:
        return _facts({suffix: text.decode("utf-8-sig") for suffix, text in texts.items()}, options, known)
    except UnicodeDecodeError as error:
        return Facts(problem=f"bad_sidecar: the text beside the picture is not UTF-8 ({error})")
    except (ValueError, RecursionError) as error:
        return Facts(problem=f"bad_sidecar: the JSON beside the picture: {error}")


def _facts(texts: Mapping[str, str], options: Options, known: Mapping[str, Any]) -> Facts:
    found = Facts(fields=dict(known))
    if "json" in texts:
        fields = json.loads(texts["json"])
        if not isinstance(fields, dict):
            raise ValueError("it is no object {...}")
        found.fields |= {str(name): value for name, value in fields.items()}
    for suffix, text in texts.items():
        name, _, kind = suffix.rpartition(".")
        if name:  # X.outputs.txt and X.cls_idx.json are the columns outputs and cls_idx
            column = name if kind != "cls" or name in _LABEL_FIELDS else f"{name}_cls"
            found.fields[column.replace(".", "_")] = json.loads(text) if kind == "json" else text.strip()
    if "txt" in texts:
        if "caption" in found.fields:
            found.fields["json_caption"] = found.fields.pop("caption")
        found.fields["caption"] = texts["txt"].strip()
    split = found.fields.get("split")
    if isinstance(split, str) and split_of(split):
        found.split = split_of(str(found.fields.pop("split")))
    elsewhere = options.label_column is not None or options.label_level is not None
    if "cls" in texts and elsewhere:
        found.fields["cls"] = texts["cls"].strip()
    if "cls" in texts and not elsewhere:
        found.label = texts["cls"].strip() or None
        if found.label and "\n" in found.label:
            raise ValueError("the .cls holds several lines; one class name is wanted")
    elif options.label_level is None:
        _take_label(found, options)
    return found


def _take_label(found: Facts, options: Options) -> None:
    wanted = (options.label_column,) if options.label_column is not None else _LABEL_FIELDS
    name = next((name for name in wanted if found.fields.get(name) is not None), None)
    if name is not None:
        try:
            found.label = label_text(found.fields.pop(name))
        except ValueError as error:
            found.problem = f"bad_label: the label {error}"
