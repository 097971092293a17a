"""Random numbers: seeds, generators, and the ranges of values that augmentations draw from.

A generator depends on what it is for (seed, epoch, key), never on the order of calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import AfterValidator, Field

_SEPARATOR = "\x1f"


def seed_of(*parts: int | str) -> int:
    """A 128-bit seed computed from `parts` (seed, epoch, key ...); the same on every machine."""
    return int.from_bytes(_digest(_SEPARATOR.join(map(str, parts))), "little")


def seeds_of(seed: int, epoch: int, keys: Sequence[str]) -> list[bytes]:
    """`seed_of(seed, epoch, key)` of each key, as 16 bytes, the lowest first."""
    before = f"{seed}{_SEPARATOR}{epoch}{_SEPARATOR}"
    return [_digest(before + key) for key in keys]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def generator(*parts: int | str) -> np.random.Generator:
    """A new generator seeded with `seed_of(*parts)`."""
    return np.random.Generator(np.random.Philox(key=seed_of(*parts)))


# -- ranges -----------------------------------------------------------------------------------------------------------


def in_order(value: Any) -> Any:
    """Validates that the low end of a pair comes first."""
    if isinstance(value, tuple) and value[0] > value[1]:
        raise ValueError("should be [low, high], the low end first")
    return value


_Angle: TypeAlias = Annotated[float, Field(ge=-360, le=360)]
_AreaFraction: TypeAlias = Annotated[float, Field(gt=0, le=1)]
_Ratio: TypeAlias = Annotated[float, Field(ge=0.01, le=100)]
_Gain: TypeAlias = Annotated[float, Field(ge=0, le=100)]

#: A probability, 0 to 1.
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]

#: An angle in degrees: a number d is drawn uniformly from [-d, d], a pair from [low, high].
Degrees: TypeAlias = Annotated[Annotated[float, Field(ge=0, le=180)] | tuple[_Angle, _Angle], AfterValidator(in_order)]

#: A factor: a number a is drawn uniformly from [max(0, 1 - a), 1 + a], a pair from [low, high].
Factor: TypeAlias = Annotated[Annotated[float, Field(ge=0, le=10)] | tuple[_Gain, _Gain], AfterValidator(in_order)]

#: A range of ratios of two lengths, [low, high].
Ratios: TypeAlias = Annotated[tuple[_Ratio, _Ratio], AfterValidator(in_order)]

#: A range of fractions of the picture's area, [low, high].
AreaFractions: TypeAlias = Annotated[tuple[_AreaFraction, _AreaFraction], AfterValidator(in_order)]


def uniform(low: float, high: float, rng: np.random.Generator) -> float:
    """A number drawn uniformly from [low, high)."""
    return low + (high - low) * rng.random()


def symmetric(limit: float | tuple[float, float], rng: np.random.Generator) -> float:
    """A number drawn uniformly from [-limit, limit), or from [low, high) if `limit` is a pair."""
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    return uniform(low, high, rng)


def factor(amount: float | tuple[float, float], rng: np.random.Generator) -> float:
    """A factor drawn uniformly from [max(0, 1 - amount), 1 + amount), or from [low, high) if `amount` is a pair."""
    low, high = amount if isinstance(amount, tuple) else (max(0.0, 1 - amount), 1 + amount)
    return uniform(low, high, rng)
