"""Reads sidecars, files beside a picture that describe it (NAME.cls, NAME.json, NAME.txt), and WebDataset's samples.

In folders and archives alike, a sidecar has the stem of a picture in the same folder. A text without a picture is
skipped and counted, like README.md and labels.csv.
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
from library.sources.labels import split_of
from library.sources.listing import SUPERSEDED, Options, output_name
from library.sources.tables.columns import label_text

#: Field of a JSON record that `striate convert` wrote: its `key` and `label` are those of the dataset, whatever the
#: names of files and folders.
MARK = "striate"

_LABEL_FIELDS = ("label", "class")
_MAIN_NAMES = ("image", "img", "input", "rgb", "picture", "photo")


@dataclass
class Sample:
    """The entries that belong to one picture, by row number.

    Attributes:
        key: path below the folder or in the archive; in WebDataset up to the first dot.
        row: the entry of the picture (or of a file that is not a sidecar).
        sidecars: entries by suffix: cls, json, txt; in WebDataset also with a name, such as outputs.txt.
        parts: entries of other binary members by column name.
    """

    key: str
    row: int
    sidecars: Mapping[str, int] = field(default_factory=dict[str, int])
    parts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass
class Facts:
    """The label, split and other fields of one picture from its sidecars, and their problem if there is one.

    Attributes:
        key: the key, where `striate convert` has recorded it. The folders below `depth` then mean nothing.
        depth: how many folders of the picture's path belong to its name.
    """

    key: str | None = None
    depth: int = 0
    label: str | None = None
    split: str | None = None
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    problem: str | None = None


def samples(entries: Entries, may_be_webdataset: bool, main_suffix: str | None = None) -> tuple[bool, list[Sample]]:
    """Groups the files of a folder or archive into samples; other files are counted in `entries.skipped`.

    If an archive repeats a name, the last member counts, as when the archive is unpacked; each earlier picture becomes
    a sample with a problem, so that it is rejected.

    Args:
        entries: the files.
        may_be_webdataset: whether the names may follow WebDataset (in tar): the members of a sample share everything
            up to the first dot, which is the key.
        main_suffix: suffix of the picture in WebDataset (`jpg`, `image.png`); None: decided by the names.

    Returns:
        Whether the files are WebDataset's, and the samples in the order of their pictures.
    """
    superseded = _superseded(entries)
    earlier = set(superseded)
    rows = [row for row in range(len(entries)) if row not in earlier]
    texts = any(suffix_of(path) in SIDECAR_SUFFIXES for path in entries.path)
    if may_be_webdataset and (texts or main_suffix is not None):
        groups, repeated = _by_first_dot(entries, [*superseded, *rows])
        if main_suffix is not None or _is_webdataset(groups):
            for key in [key for key, members in groups.items() if _is_other_file(key, members)]:
                entries.skipped["beside"] += len(groups.pop(key))
            grouped = [_sample(entries, key, members, main_suffix) for key, members in groups.items()]
            return True, [*grouped, *_rejects(entries, repeated)]
    beside = _sidecars(entries, rows)
    used = {row for sidecars in beside.values() for row in sidecars.values()}
    grouped: list[Sample] = []
    for row in rows:
        path = entries.path[row]
        if is_picture_name(path):
            grouped.append(Sample(path, row, beside.get(posixpath.splitext(path)[0], {})))
        elif not is_other_name(path):
            grouped.append(Sample(path, row))
        elif row not in used:
            entries.skipped["beside"] += 1
    return False, [*grouped, *_rejects(entries, [(entries.path[row], row) for row in superseded])]


def _superseded(entries: Entries) -> list[int]:
    """Members whose name is repeated later in the archive; none in a folder, where each file has its own URI."""
    if entries.uri[:1] != entries.uri[-1:]:
        return []
    last: dict[str, int] = {}
    rows: list[int] = []
    for row, path in enumerate(entries.path):
        if path in last:
            rows.append(last[path])
        last[path] = row
    return rows


def _rejects(entries: Entries, superseded: Collection[tuple[str, int]]) -> Iterator[Sample]:
    """A sample with a problem for each superseded picture; superseded sidecars are only counted."""
    for key, row in superseded:
        if is_other_name(entries.path[row]):
            entries.skipped["repeated"] += 1
        else:
            entries.problem[row] = f"{SUPERSEDED}the archive has '{entries.path[row]}' again; the last one is used"
            yield Sample(key, row)


def _sidecars(entries: Entries, rows: Collection[int]) -> dict[str, dict[str, int]]:
    """Row numbers of sidecars by the stem of their picture, then by suffix."""
    by_stem: dict[str, dict[str, int]] = {}
    for row in rows:
        path = entries.path[row]
        if suffix_of(path) in SIDECAR_SUFFIXES:
            by_stem.setdefault(posixpath.splitext(path)[0], {})[suffix_of(path)] = row
    if not by_stem:
        return {}
    pictures = (posixpath.splitext(path)[0] for path in entries.path if is_picture_name(path))
    return {stem: by_stem[stem] for stem in pictures if stem in by_stem}


def _by_first_dot(entries: Entries, rows: Iterable[int]) -> tuple[dict[str, dict[str, int]], list[tuple[str, int]]]:
    """Row numbers by key and suffix, split as in WebDataset; and key and row number of each superseded member."""
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
    """Whether names up to the first dot are samples; not so for cat.0.jpg, cat.1.jpg and cat.0.txt of a folder."""
    some = False
    for members in groups.values():
        pictures = [suffix for suffix in members if suffix.rpartition(".")[2] in PICTURE_SUFFIXES]
        has_text = not SIDECAR_SUFFIXES.isdisjoint(members) or _has_named_text(members, pictures)
        if len(pictures) > 1 and not has_text and all("." in suffix for suffix in pictures):
            return False
        some = some or (has_text and bool(pictures))
    return some


def _has_named_text(members: Collection[str], pictures: Collection[str]) -> bool:
    """Whether a sample has a text with its own name that is not a number, like X.outputs.txt for X.input.jpg."""
    names = {suffix.rpartition(".")[0] for suffix in pictures}
    texts = {suffix.rpartition(".")[0] for suffix in members if suffix.rpartition(".")[2] in SIDECAR_SUFFIXES}
    one = len(pictures) == 1 or not names.isdisjoint(_MAIN_NAMES)
    return one and any(text and not text.isdigit() and text not in names for text in texts)


def _is_other_file(key: str, members: Collection[str]) -> bool:
    """Whether a group is not a sample but another file, like README.md; a text without a picture is a sample."""
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


def _main(members: Collection[str], main_suffix: str | None) -> str:
    """The suffix of the member that is the picture; that of the first member if there is none."""
    if main_suffix is not None and main_suffix.lower() in members:
        return main_suffix.lower()
    pictures = [suffix for suffix in members if suffix.rpartition(".")[2] in PICTURE_SUFFIXES]
    pictures.sort(key=lambda suffix: ("." in suffix, suffix.partition(".")[0] not in _MAIN_NAMES))
    return pictures[0] if pictures else next(iter(members))


def _part_name(suffix: str, used: Collection[str]) -> str:
    """The column of a member: `mask` for `mask.png`, `seg_cls` for `seg.cls`; a second `mask` keeps its suffix."""
    name, _, last = suffix.rpartition(".")
    short = name if name and last in PICTURE_SUFFIXES else suffix
    column = output_name(short.replace(".", "_") or "member")
    return column if column not in used else output_name(suffix.replace(".", "_"), used)


def facts(texts: Mapping[str, bytes], options: Options, known: Mapping[str, Any]) -> Facts:
    """Reads the sidecars of one picture.

    Args:
        texts: content of the sidecars by suffix.
        options: `label_column` names the field of the JSON that is the label.
        known: fields from a table.

    Returns:
        Their facts. A damaged sidecar is a problem of the picture, so that no label is guessed.
    """
    try:
        return _facts({suffix: text.decode("utf-8-sig") for suffix, text in texts.items()}, options, known)
    except UnicodeDecodeError as error:
        return Facts(problem=f"bad_sidecar: the text beside the picture is not UTF-8 ({error})")
    except (ValueError, RecursionError) as error:
        return Facts(problem=f"bad_sidecar: the JSON beside the picture: {error}")


def _facts(texts: Mapping[str, str], options: Options, known: Mapping[str, Any]) -> Facts:
    result = Facts(fields={**known, **_json_fields(texts.get("json", "{}"))})
    if result.fields.get(MARK) == 1 and isinstance(result.fields.get("key"), str):
        return _own(result.fields, options)
    for suffix, text in texts.items():
        name, _, kind = suffix.rpartition(".")
        if name:  # X.outputs.txt is the column outputs, X.cls_idx.json the column cls_idx
            column = name if kind != "cls" or name in _LABEL_FIELDS else f"{name}_cls"
            result.fields[column.replace(".", "_")] = json.loads(text) if kind == "json" else text.strip()
    if "txt" in texts:
        if "caption" in result.fields:
            result.fields["json_caption"] = result.fields.pop("caption")
        result.fields["caption"] = texts["txt"].strip()
    split = result.fields.get("split")
    if isinstance(split, str) and split_of(split):
        result.split = split_of(str(result.fields.pop("split")))
    elsewhere = options.label_column is not None or options.label_level is not None
    if "cls" in texts and elsewhere:
        result.fields["cls"] = texts["cls"].strip()
    if "cls" in texts and not elsewhere:
        result.label = texts["cls"].strip() or None
        if result.label and "\n" in result.label:
            raise ValueError("the .cls has several lines, but a picture has one class")
    elif options.label_level is None:
        _take_label(result, options)
    return result


def _json_fields(text: str) -> dict[str, Any]:
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("it is not an object {...}")
    return {str(name): value for name, value in fields.items()}


def _own(fields: Mapping[str, Any], options: Options) -> Facts:
    """Returns what a record of `striate convert` says; --label-column chooses another field as the label."""
    known = {name: value for name, value in fields.items() if name not in (MARK, "key", "label", "file_name")}
    path = str(fields.get("file_name", fields["key"]))
    result = Facts(str(fields["key"]), path.count("/"), fields=known)
    if options.label_column is not None:
        _take_label(result, options)
    elif options.label_level is None and fields.get("label") is not None:
        result.label = str(fields["label"])
    return result


def _take_label(result: Facts, options: Options) -> None:
    names = (options.label_column,) if options.label_column is not None else _LABEL_FIELDS
    name = next((name for name in names if result.fields.get(name) is not None), None)
    if name is not None:
        try:
            result.label = label_text(result.fields.pop(name))
        except ValueError as error:
            result.problem = f"bad_label: the label {error}"
