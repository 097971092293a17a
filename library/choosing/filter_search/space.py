"""The candidates of a filter search: filters, where they are put, sequences of them, and placebos.

The identity is a recipe as it is. A candidate is that recipe with filters at one of three places:

- `always`: first in the recipe's `input.steps`, so that every picture is filtered, in training and in use;
- `sometimes`: as an augmentation, for a share of the pictures of each epoch, and never in use;
- `channels`: the filtered picture's channels are added to those of the prepared picture.

A placebo is the identity under another name, trained with other random numbers. Its differences to the identity show
how much trainings differ by chance.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from library.errors import GrammarError, UsageError
from library.grammar import format_value, nearest
from library.pipeline import Pipeline
from library.randomness import seed_of
from library.recipe.yaml_text import load_yaml
from library.steps import REGISTRY
from library.steps.base import Step, parameters

Place: TypeAlias = Literal["always", "sometimes", "channels"]

PLACES: tuple[Place, ...] = get_args(Place)
#: Longest sequence of filters.
MOST_FILTERS = 3
MOST_CANDIDATES = 2_000
PLACEBOS = 3
SOMETIMES = 0.5
_MOST_BYTES = 2**20
#: Characters of a list that a candidate's label shows whole.
_LONGEST_LIST = 60

#: Filters by default, each with two strengths or several directions; equalize, invert and binarize have none. Steps
#: that change the size, the channels or the format are no answer to "which filter helps", and are left to the recipe:
#: resize, crop, grayscale, pools.
STRENGTHS: Mapping[str, tuple[str, ...]] = {
    "smoothing": (
        "median_blur(size=3)",
        "median_blur(size=5)",
        "gaussian_blur(sigma=0.7)",
        "gaussian_blur(sigma=1.5)",
        "box_blur(size=3)",
        "box_blur(size=5)",
        "bilateral(sigma_space=2.0, sigma_color=0.1)",
        "bilateral(sigma_space=3.0, sigma_color=0.3)",
        "denoise(strength=0.04)",
        "denoise(strength=0.12)",
    ),
    "sharpening": (
        "sharpen(amount=0.5)",
        "sharpen(amount=1.5)",
        "laplacian_sharpen(amount=0.5)",
        "laplacian_sharpen(amount=1.0)",
    ),
    "tone": (
        "equalize",
        "clahe(clip_limit=2.0)",
        "clahe(clip_limit=4.0, tiles=4)",
        "contrast_stretch(low_percentile=2.0, high_percentile=98.0)",
        "contrast_stretch(low_percentile=0.5, high_percentile=99.5)",
        "gamma(0.6)",
        "gamma(1.6)",
        "invert",
    ),
    "shape": (
        'binarize(method="otsu")',
        "erode(size=3)",
        "erode(size=5)",
        "dilate(size=3)",
        "dilate(size=5)",
        "open(size=3)",
        "open(size=5)",
        "close(size=3)",
        "close(size=5)",
    ),
    "edges": (
        "edges",
        'edges(direction="vertical")',
        'edges(direction="horizontal")',
        "canny(low=0.1, high=0.2)",
        "canny(low=0.2, high=0.4)",
        "gabor(wavelength=4, angle=0)",
        "gabor(wavelength=4, angle=90)",
    ),
}


@dataclass(frozen=True)
class Candidate:
    """A recipe with filters at one place.

    Attributes:
        filters: their canonical text; empty for the identity and for placebos.
        place: where they are put; `always` for the identity and for placebos.
        p: with `sometimes`, the probability that a picture is filtered; None otherwise.
        placebo: number of a placebo, from 1; None for all others.
    """

    filters: str = ""
    place: Place = "always"
    p: float | None = None
    placebo: int | None = None

    @property
    def name(self) -> str:
        """A readable name that no other candidate has."""
        return self._named(self.filters)

    @property
    def label(self) -> str:
        """The name as it is shown: of a kernel only its first number, and no word or switch that has its default.

        Two candidates may have the same label.
        """
        return self._named(" | ".join(map(_brief, Pipeline.parse(self.filters).steps)) if self.filters else "")

    def _named(self, filters: str) -> str:
        if self.placebo is not None:
            return f"placebo {self.placebo}"
        if not filters:
            return "identity"
        return {
            "always": filters,
            "sometimes": f"sometimes({self.p!r}, {filters})",
            "channels": f"with_channels({filters})",
        }[self.place]

    @property
    def steps(self) -> tuple[str, ...]:
        """The filters' canonical texts, in order."""
        return tuple(map(str, Pipeline.parse(self.filters).steps)) if self.filters else ()

    def input_steps(self, steps: str) -> str:
        """Returns a recipe's `input.steps`, which may be empty, with the filters."""
        if not self.filters or self.place == "sometimes":
            return steps
        added = self.filters if self.place == "always" else f"with_channels({self.filters})"
        order = (added, steps) if self.place == "always" else (steps, added)
        return " | ".join(text for text in order if text)

    def augment(self, steps: str) -> str:
        """Returns a recipe's `augment`, which may be empty, with the filters."""
        if not self.filters or self.place != "sometimes":
            return steps
        added = f"sometimes({self.p!r}, {self.filters})"
        return f"{added} | {steps}" if steps else added

    def seed(self, seed: int) -> int:
        """Returns the seed of a training: the same for all candidates but placebos, each of which has its own.

        With `sometimes` and `channels` the same seed does not give all of the same draws: see decision 0015.
        """
        return seed if self.placebo is None else seed_of("placebo", self.placebo, seed) % 2**31

    def to_json(self) -> dict[str, Any]:
        """Returns the candidate as plain data, with its name."""
        return {
            "name": self.name,
            "filters": self.filters,
            "place": self.place,
            "p": self.p,
            "placebo": self.placebo,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Candidate:
        """Reads what `to_json` returned."""
        return cls(document["filters"], document["place"], document["p"], document["placebo"])


IDENTITY = Candidate()


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        filters: canonical texts of single filters, or of sequences that are tried as a whole.
        places: where each is put.
        p: with `sometimes`, the probability.
        length: most filters in a sequence that the search makes of those that help, 1 to 3.
        placebos: number of placebos.
    """

    filters: tuple[str, ...]
    places: tuple[Place, ...] = PLACES
    p: float = SOMETIMES
    length: int = 2
    placebos: int = PLACEBOS

    @classmethod
    def default(cls, added: Iterable[str] = ()) -> Space:
        """Returns every filter of `STRENGTHS`, and others such as those of plugins."""
        texts = itertools.chain(*STRENGTHS.values(), added)
        return cls(tuple(dict.fromkeys(_canonical(text) for text in texts)))

    @classmethod
    def parse(cls, text: str, where: str = "the space") -> Space:
        """Reads a space from YAML.

            filters: [default, "convolve(kernel=[[0, 1, 0], [1, -4, 1], [0, 1, 0]])"]
            without: [canny, denoise]
            places: [always, sometimes, channels]
            p: 0.5
            length: 2
            placebos: 3

        Every field may be left out. `default` stands for all filters of the default space; `without` removes filters by
        the names of their steps.

        Args:
            text: the YAML.
            where: named in errors.

        Raises:
            UsageError: names every field that is wrong, and what would work.
        """
        if len(text) > _MOST_BYTES:
            raise UsageError(f"{where} is larger than {_MOST_BYTES:,} bytes")
        try:
            document = load_yaml(text)
        except UsageError as error:
            raise UsageError(f"{where} is not valid YAML: {error}") from None
        document = {} if document is None else document
        if not isinstance(document, dict):
            raise UsageError(f"{where} is not a mapping of fields; the fields are {', '.join(_FIELDS)}")
        problems = [
            f"{name}: unknown field{nearest(str(name), _FIELDS)}; the fields are {', '.join(_FIELDS)}"
            for name in document
            if name not in _FIELDS
        ]
        default = cls.default()
        filters = _filters(document.get("filters", ("default",)), default, problems)
        filters = _without(filters, document.get("without", ()), problems)
        places = document.get("places", PLACES)
        if not isinstance(places, tuple) or not places or any(place not in PLACES for place in places):
            problems.append(f"places: {_shown(places)} is not a list of some of {', '.join(PLACES)}")
        p = document.get("p", SOMETIMES)
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p < 1:
            problems.append(f"p: {p!r} is not a probability between 0 and 1")
        elif "p" in document and isinstance(places, tuple) and "sometimes" not in places:
            problems.append("p: has no effect without the place `sometimes`")
        length, placebos = document.get("length", 2), document.get("placebos", PLACEBOS)
        if type(length) is not int or length not in range(1, MOST_FILTERS + 1):
            problems.append(f"length: {length!r} is not 1, 2 or 3")
        if type(placebos) is not int or placebos not in range(101):
            problems.append(f"placebos: {placebos!r} is not a number from 0 to 100")
        if not problems and not filters:
            problems.append("filters: none is left to search")
        if problems:
            raise UsageError("\n".join([f"{where} is wrong:", *(f"  {problem}" for problem in problems)]))
        return cls(filters, tuple(dict.fromkeys(places)), float(p), length, placebos)

    def singles(self) -> list[Candidate]:
        """Returns each filter at each place, and the placebos; without the identity."""
        candidates = [self._at(text, place) for place in self.places for text in self.filters]
        return candidates + [Candidate(placebo=number + 1) for number in range(self.placebos)]

    def compose(self, survivors: Sequence[Candidate], length: int) -> list[Candidate]:
        """Returns sequences of `length` filters that survivors have at the same place, in every order.

        No sequence holds two strengths of one step. Placebos are not combined.
        """
        composed: list[Candidate] = []
        for place in self.places:
            texts = [one.filters for one in survivors if one.filters and one.place == place and len(one.steps) == 1]
            composed += [
                self._at(" | ".join(sequence), place)
                for sequence in itertools.permutations(dict.fromkeys(texts), length)
                if len({Pipeline.parse(text).steps[0].name for text in sequence}) == length
            ]
        return composed

    def _at(self, filters: str, place: Place) -> Candidate:
        return Candidate(filters, place, self.p if place == "sometimes" else None)

    def to_json(self) -> dict[str, Any]:
        """Returns the space as plain data."""
        return {
            "filters": list(self.filters),
            "places": list(self.places),
            "p": self.p,
            "length": self.length,
            "placebos": self.placebos,
        }


_FIELDS = ("filters", "without", "places", "p", "length", "placebos")


def _canonical(text: str) -> str:
    pipeline = Pipeline.parse(text, refuse="augmentation")
    for step in pipeline.steps:
        if step.kind != "filter":
            raise UsageError(f"'{step.name}' drops pictures; a filter search compares filters")
        if step.columns():
            raise UsageError(f"'{step.name}' reads the column '{step.columns()[0]}', which a classifier does not get")
    if not 1 <= len(pipeline.steps) <= MOST_FILTERS:
        raise UsageError(f"a sequence has 1 to {MOST_FILTERS} filters")
    return str(pipeline)


def _brief(step: Step) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(step)}
    shown = [
        f"{name}={_beginning(value)}"
        for name, value in parameters(step).items()
        if not (isinstance(value, str | bool) and value == defaults[name])
    ]
    return f"{step.name}({', '.join(shown)})" if shown else step.name


def _beginning(value: object) -> str:
    """Returns the text of a parameter, of a long list only its first item."""
    text = format_value(value)
    if len(text) <= _LONGEST_LIST or not isinstance(value, tuple | list):
        return text
    depth = len(text) - len(text.lstrip("["))
    return f"{text.partition(',')[0]}, ...{']' * depth}"


def _shown(value: Any) -> str:
    """Returns a value as it may stand in YAML; lists have been read as tuples."""
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, tuple) else repr(value)


def _filters(listed: Any, default: Space, problems: list[str]) -> tuple[str, ...]:
    if not isinstance(listed, tuple):
        problems.append(f"filters: {listed!r} is not a list of pipelines, or of `default`")
        return ()
    texts: list[str] = []
    for item in listed:
        if item == "default":
            texts += default.filters
            continue
        if not isinstance(item, str):
            problems.append(f"filters: {_shown(item)} is not the text of a pipeline; are quotes missing?")
            continue
        try:
            texts.append(_canonical(item))
        except (GrammarError, UsageError) as error:
            problems.append(f"filters: {error}")
    return tuple(dict.fromkeys(texts))


def _without(filters: tuple[str, ...], listed: Any, problems: list[str]) -> tuple[str, ...]:
    if not isinstance(listed, tuple) or any(not isinstance(name, str) for name in listed):
        problems.append(f"without: {_shown(listed)} is not a list of names of steps")
        return filters
    names = {text: {step.name for step in Pipeline.parse(text).steps} for text in filters}
    used, removed = set[str]().union(*names.values()), set(listed)
    all_known = not any(problem.startswith("filters:") for problem in problems)
    for name in dict.fromkeys(listed):
        if name not in REGISTRY:
            problems.append(f"without: unknown step '{name}'{nearest(name, REGISTRY)}")
        elif all_known and name not in used:
            problems.append(f"without: '{name}' has no effect, as it is in none of the filters")
    return tuple(text for text in filters if not removed & names[text])
