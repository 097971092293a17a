"""The unit of work of a filter search: one training of one candidate, with what it got right on the same pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.choosing.filter_search.space import Candidate
from library.dataset.manifest import digest_of
from library.randomness import seeds_of

#: `proxy`: a cheap training, judged on the screening half of the validation pictures. `recipe`: the real training,
#: judged on the other half. `test`: the real training, judged on the test pictures.
Stage: TypeAlias = Literal["proxy", "recipe", "test"]


@dataclass(frozen=True)
class Unit:
    """One training.

    Attributes:
        candidate: what is trained.
        seed: of the pair; a candidate and the identity are compared at the same seed.
        stage: how it is trained, and on which pictures it is judged.
        context: digest of all else that the result depends on: data, recipe, versions.
    """

    candidate: Candidate
    seed: int
    stage: Stage
    context: str

    @property
    def digest(self) -> str:
        """SHA-256 in hex of everything that the result depends on."""
        return digest_of([self.candidate.to_json(), self.seed, self.stage, self.context])

    @property
    def file_name(self) -> str:
        """Name of the result's file."""
        return f"{self.digest[:32]}.json"

    def to_json(self) -> dict[str, Any]:
        """Returns the unit as plain data."""
        return {
            "candidate": self.candidate.to_json(),
            "seed": self.seed,
            "stage": self.stage,
            "context": self.context,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Unit:
        """Reads what `to_json` returned."""
        return cls(Candidate.from_json(document["candidate"]), document["seed"], document["stage"], document["context"])


@dataclass(frozen=True)
class UnitResult:
    """What one training got right.

    Attributes:
        unit: what was trained.
        correct: one for each judged picture, always in the same order; bool.
        seconds: of the training and the judging.
        filter_ms: time of the candidate's filters, in milliseconds a picture on one core: the shortest of a few
            measurements, and 0 where nothing is filtered in use.
        failure: why the candidate cannot be trained, as a sentence; None where it was. `correct` is then empty.
    """

    unit: Unit
    correct: NDArray[np.bool_]
    seconds: float
    filter_ms: float
    failure: str | None = None

    @property
    def accuracy(self) -> float:
        """Share of the pictures that are right, 0 to 1."""
        return float(self.correct.mean()) if len(self.correct) else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain data; `correct` as base64 of packed bits."""
        return {
            "unit": self.unit.to_json(),
            "pictures": len(self.correct),
            "correct": base64.b64encode(np.packbits(self.correct).tobytes()).decode(),
            "seconds": round(self.seconds, 3),
            "filter_ms": self.filter_ms,
            "failure": self.failure,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> UnitResult:
        """Reads what `to_json` returned."""
        packed = np.frombuffer(base64.b64decode(document["correct"]), np.uint8)
        return cls(
            Unit.from_json(document["unit"]),
            np.unpackbits(packed, count=document["pictures"]).astype(bool),
            document["seconds"],
            document["filter_ms"],
            document["failure"],
        )


def halves(keys: list[str], seed: int = 0) -> NDArray[np.bool_]:
    """Returns which validation pictures are for screening; the others are for confirmation, and seen only then.

    Each key is drawn by itself, so a picture stays in its half when others are added. Both halves have a picture where
    there are two.
    """
    screening = np.array([draw[0] & 1 == 0 for draw in seeds_of(seed, 0, keys)], np.bool_)
    if len(screening) > 1 and (screening.all() or not screening.any()):
        screening[0] = ~screening[0]
    return screening
