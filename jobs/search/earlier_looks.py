"""Remembers what has been judged on which pictures: an answer is sure only where its pictures were not asked before.

search.json of a search's folder lists every look at the confirmation pictures and at the test pictures. Another look at
confirmation pictures is counted and shown on the page; another look at test pictures is refused.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, cast

from library import storage
from library.errors import StriateError, UsageError

Pictures: TypeAlias = Literal["confirmation", "test"]
_LOOKS = "looks"
_MOST_BYTES = 16 * 2**20
#: Of a candidate's name in an error; a kernel has many.
_MOST_CHARACTERS = 120


@dataclass(frozen=True)
class Look:
    """One look.

    Attributes:
        pictures: which ones.
        dataset: their digest; pictures that are copied elsewhere stay the same.
        question: digest of what was asked: data, recipe, space, seeds, margin and cost weight.
        candidates: the judged candidates' names, without the identity.
        seeds: of the paired trainings.
        outcome: of the answer; two looks that differ in nothing else are the same.
    """

    pictures: Pictures
    dataset: str
    question: str
    candidates: tuple[str, ...]
    seeds: tuple[int, ...]
    outcome: str = field(compare=False)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Look:
        """Reads one from search.json."""
        texts = (document[name] for name in ("pictures", "dataset", "question"))
        pictures, dataset, question = (str(text) for text in texts)
        candidates = tuple(str(name) for name in document["candidates"])
        seeds = tuple(int(seed) for seed in document["seeds"])
        return cls(cast(Pictures, pictures), dataset, question, candidates, seeds, str(document["outcome"]))


@dataclass
class EarlierLooks:
    """The looks in a folder, and those of the search that runs there.

    Attributes:
        question: of this search, as in `Look`.
        datasets: digests of this search's pictures; without `test` where there is no test.
        looks: first to last.
        save: called after each new one.
    """

    question: str = ""
    datasets: Mapping[str, str] = field(default_factory=lambda: {"confirmation": "", "test": ""})
    looks: list[Look] = field(default_factory=list[Look])
    save: Callable[[], None] = lambda: None

    def record(self, pictures: Pictures, candidates: Sequence[str], seeds: Sequence[int], outcome: str) -> None:
        """Adds a look, before what it sees is used; the same one again, as after a kill, is no other."""
        look = self._look(pictures, candidates, seeds, outcome)
        if look not in self.looks:
            self.looks.append(look)
            self.save()

    def other(self, pictures: Pictures, candidates: Sequence[str], seeds: Sequence[int]) -> Look | None:
        """Returns the first look at the same pictures that is not this one; None where there was none."""
        look = self._look(pictures, candidates, seeds, "")
        return next((each for each in self._at(pictures) if each != look), None)

    def count(self, pictures: Pictures) -> int:
        """How often the pictures of this search have been looked at, this search's own look counted."""
        return len(self._at(pictures))

    def check_test(self, test: str, out: str) -> None:
        """Refuses a search that would ask its test pictures another question than an earlier one.

        Args:
            test: URI of the test set, for the error; without one there is nothing to refuse.
            out: URI of the folder, for the error.

        Raises:
            UsageError: they have been looked at with other data, recipe, space, seeds, margin or cost weight.
        """
        other = next((each for each in self._at("test") if each.question != self.question), None)
        if other is not None:
            seen_for = textwrap.shorten(other.candidates[0], _MOST_CHARACTERS, placeholder=" ...")
            raise UsageError(
                f"--test {test}: an earlier search in {out} with other settings has looked at these pictures, for "
                f"{seen_for}; use other test pictures, leave --test out, or repeat the settings of that "
                "search (another --out would only forget that the pictures were seen)"
            )

    def _at(self, pictures: Pictures) -> list[Look]:
        dataset = self.datasets.get(pictures)
        return [each for each in self.looks if each.pictures == pictures and each.dataset == dataset]

    def _look(self, pictures: Pictures, candidates: Sequence[str], seeds: Sequence[int], outcome: str) -> Look:
        dataset = self.datasets.get(pictures, "")
        return Look(pictures, dataset, self.question, tuple(sorted(candidates)), tuple(seeds), outcome)


def read_looks(record: str) -> list[Look]:
    """Reads the looks of a folder.

    Args:
        record: URI of its search.json, which may be missing.

    Raises:
        StriateError: the file is damaged, so earlier looks cannot be counted.
    """
    return [] if (document := _document(record)) is None else _looks(document, record)


def described_in(record: str) -> dict[str, Any] | None:
    """Returns what search.json says of the search that wrote it, without its looks; None where there is no file."""
    document = _document(record)
    return document and {name: value for name, value in document.items() if name != _LOOKS}


def write_record(record: str, described: Mapping[str, Any], looks: Sequence[Look]) -> None:
    """Writes search.json: what is searched, and all looks.

    Args:
        record: URI of the file.
        described: what is searched, as plain data.
        looks: first to last.
    """
    document = {**described, _LOOKS: [asdict(each) for each in looks]}
    storage.write_bytes(record, (json.dumps(document, indent=1) + "\n").encode())


def _document(record: str) -> dict[str, Any] | None:
    if not storage.exists(record):
        return None
    try:
        document = json.loads(storage.read_bytes(record, _MOST_BYTES))
    except ValueError as error:
        raise StriateError(f"{record} is damaged ({error}); choose another --out") from error
    if not isinstance(document, dict):
        raise StriateError(f"{record} is not the record of a search; choose another --out")
    return cast(dict[str, Any], document)


def _looks(document: Mapping[str, Any], record: str) -> list[Look]:
    try:
        return [Look.from_json(each) for each in document.get(_LOOKS, [])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StriateError(f"{record} is damaged ({error}); choose another --out") from error
