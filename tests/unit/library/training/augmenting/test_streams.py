"""Random numbers of many pictures at once are those of each picture's own generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from library.randomness import generator, seed_of, seeds_of
from library.training.augmenting.streams import RandomStreams

PICTURES = 40
KEYS = [f"key {number}" for number in range(PICTURES)]


def comparable(state: Any) -> Any:
    """What decides the next numbers of a generator."""
    words = state["buffer"][state["buffer_pos"] :].tolist()
    half = state["uinteger"] if state["has_uint32"] else None
    return state["state"]["counter"].tolist(), state["state"]["key"].tolist(), words, half


def test_seeds_of_many_keys_are_those_of_each() -> None:
    assert [int.from_bytes(seed, "little") for seed in seeds_of(7, 2, KEYS)] == [seed_of(7, 2, key) for key in KEYS]


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_draws_gives_the_numbers_of_numpy(seed: int) -> None:
    choices = np.random.default_rng(seed)
    streams, alone = RandomStreams.of_pictures(3, 4, KEYS), [generator(3, 4, key) for key in KEYS]
    for _ in range(60):
        rows = np.flatnonzero(choices.random(PICTURES) < choices.random())
        own = [alone[row] for row in rows.tolist()]
        sizes = choices.integers(1, 70, len(rows)).tolist()
        match int(choices.integers(5)):
            case 0:
                assert streams.random(rows).tolist() == [rng.random() for rng in own]
            case 1:
                counts = choices.integers(1, 4000, len(rows))
                expected = [int(rng.integers(count)) for rng, count in zip(own, counts, strict=True)]
                assert streams.integers(rows, counts).tolist() == expected
            case 2:
                count = int(choices.choice([1, 2, 14, 3_000_000_000, 2**32 - 1]))
                assert streams.integers(rows, count).tolist() == [int(rng.integers(count)) for rng in own]
            case 3:
                drawn = streams.arrays(rows, sizes, np.uint8)
                for array, rng, size in zip(drawn, own, sizes, strict=True):
                    assert array.tolist() == rng.integers(0, 255, size, np.uint8, endpoint=True).tolist()
            case _:
                drawn = streams.arrays(rows, sizes, np.uint16)
                for array, rng, size in zip(drawn, own, sizes, strict=True):
                    assert array.tolist() == rng.integers(0, 65_536, size, np.uint16).tolist()
        states = [rng.bit_generator.state for rng in alone]
        assert list(map(comparable, streams.states())) == list(map(comparable, states))
