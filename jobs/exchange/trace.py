"""Shows where a picture, a dataset or a bundle came from, and what was made from it: `striate trace`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cluster.console import say, visible
from jobs.output import counted, size
from library import storage
from library.errors import UsageError
from library.exchange.lineage_tree import Node, Trace, is_place, trace
from library.exchange.provenance import around, find_below

_MOST_PICTURES = 20
_DIGITS = 12  # of a digest, for people


def trace_subject(subject: str, folders: Sequence[str]) -> Trace:
    """Traces a key, a dataset or a bundle.

    Args:
        subject: as `library.exchange.lineage_tree.trace` takes it.
        folders: where to look for datasets and bundles; empty for the folder around the subject, or the current one.

    Raises:
        UsageError: there is no such thing there.
    """
    uri = storage.normalize(subject)
    at_place = is_place(uri)
    for folder in folders:
        if not storage.exists(storage.normalize(folder)):
            raise UsageError(f"--in {folder}: there is no such folder")
    default = [around(uri) if at_place else "."]
    catalogue = find_below([*(folders or default), *([uri] if at_place else [])])
    return trace(subject, catalogue)


def print_trace(result: Trace) -> None:
    """Prints a trace as a tree, for people."""
    for root in result.roots:
        for line in _lines(root):
            say(line)
    for problem in result.problems:
        say(f"note: {problem}")


def _lines(node: Node, first: str = "", below: str = "") -> Iterator[str]:
    """Yields the lines of a node and its children.

    Args:
        node: the node.
        first: what is put before its first line.
        below: what is put before its other lines and its children.
    """
    yield first + _title(node)
    facts = [*_facts(node)]
    has_children = bool(node.children)
    for fact in facts:
        yield below + ("│    " if has_children else "     ") + fact
    for number, child in enumerate(node.children, 1):
        last = number == len(node.children)
        yield from _lines(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))


def _title(node: Node) -> str:
    mark = "  <- this" if node.facts.get("subject") else ""
    if node.kind == "bundle":
        role = f", {node.facts['role']}" if "role" in node.facts else ""
        missing = "" if node.found else "  (not found; it was here)"
        return f"bundle {visible(node.uri)} ({node.facts['bundle_id'][:_DIGITS]}{role}){missing}{mark}"
    made_by = f"  by {visible(node.facts['made_by'])}" if node.facts.get("made_by") else ""
    missing = "" if node.found else "  (not found; it was here)"
    return f"{node.kind} {visible(node.uri)}{missing}{made_by}{mark}"


def _facts(node: Node) -> Iterator[str]:
    pictures: Any = node.facts.get("pictures")
    for file, digest in node.facts.get("files", {}).items():
        yield f"file {visible(file)}, sha256 {digest[:_DIGITS]}"
    if "also_from" in node.facts:
        yield f"also from {', '.join(map(visible, node.facts['also_from']))}"
    if "bundle" in node.facts:
        yield f"bundle {visible(node.facts['bundle'])}"
    if "digest" in node.facts:
        number = f"{counted(pictures, 'picture')}, " if isinstance(pictures, int) else ""
        yield f"{number}digest {node.facts['digest'][:_DIGITS]}"
    elif isinstance(pictures, int):
        yield counted(pictures, "picture")
    if isinstance(pictures, list):
        for picture in pictures[:_MOST_PICTURES]:
            yield _picture(picture)
        if len(pictures) > _MOST_PICTURES:
            yield f"and {len(pictures) - _MOST_PICTURES:,} more"


def _picture(facts: dict[str, Any]) -> str:
    label = "no label" if facts["label"] is None else f"label {visible(facts['label'])}"
    predicted = f", predicted {visible(str(facts['predicted']))}" if "predicted" in facts else ""
    return (
        f"{visible(facts['key'])}: {label}{predicted}, {size(facts['bytes'])}, sha256 {facts['sha256'][:_DIGITS]}, "
        f"{facts['shard']} row {facts['row']:,}"
    )
