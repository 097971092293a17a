"""Many random generators at once: for each picture the numbers that `library.randomness.generator` would give it.

NumPy's generators take tens of microseconds to make, one for each picture. Here Philox itself is computed for all
pictures together, and a step draws one number for each of them in a few array operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.randomness import seeds_of

Rows = NDArray[np.int64]

# Philox 4x64 with ten rounds: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_WORDS = 4  # words of a block, each of 64 bits
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_TO_UNIT = 1.0 / 2**53


class RandomStreams:
    """A random generator for each of n pictures, with NumPy's `Generator(Philox)` as the model.

    Every method takes the rows (numbers of pictures, no row twice) whose generators advance.

    Args:
        seeds: for each picture, the 16 bytes of its seed.
    """

    def __init__(self, seeds: Sequence[bytes]) -> None:
        self._keys = np.frombuffer(b"".join(seeds), "<u8").astype(np.uint64).reshape(-1, 2)
        self._words = np.empty((len(seeds), 0), np.uint64)
        self._next = np.zeros(len(seeds), np.int64)
        # NumPy splits a word for two 32-bit numbers and keeps the upper half for the next one.
        self._halves = np.zeros(len(seeds), np.uint64)
        self._has_half = np.zeros(len(seeds), bool)

    @classmethod
    def of_pictures(cls, seed: int, epoch: int, keys: Sequence[str]) -> RandomStreams:
        """The generators `generator(seed, epoch, key)` of some pictures."""
        return cls(seeds_of(seed, epoch, keys))

    def __len__(self) -> int:
        return len(self._keys)

    def random(self, rows: Rows) -> NDArray[np.float64]:
        """A number drawn uniformly from [0, 1) for each row, as `Generator.random()`."""
        return (self._words_of(rows) >> np.uint64(11)).astype(np.float64) * _TO_UNIT

    def uniform(self, rows: Rows, low: float, high: float) -> NDArray[np.float64]:
        """A number drawn uniformly from [low, high) for each row, as `library.randomness.uniform`."""
        return low + (high - low) * self.random(rows)

    def integers(self, rows: Rows, count: int | NDArray[Any]) -> NDArray[np.int64]:
        """A whole number drawn from 0 to count - 1 for each row, as `Generator.integers(count)`; at most 2**32 - 1."""
        counts = np.broadcast_to(np.asarray(count, np.uint64), rows.shape)
        drawn = np.zeros(len(rows), np.int64)
        # Lemire 2019, Fast random integer generation in an interval. One value needs no random number.
        open_ = np.flatnonzero(counts > 1)
        while len(open_):
            wanted = counts[open_]
            products = self._half_words_of(rows[open_]) * wanted
            rest = products & _LOW
            # A number is rejected where it would make some results likelier than others.
            accepted = rest >= (np.uint64(2**32) - wanted) % wanted
            drawn[open_[accepted]] = (products[accepted] >> _HALF).astype(np.int64)
            open_ = open_[~accepted]
        return drawn

    def arrays(self, rows: Rows, sizes: Sequence[int], dtype: type[np.uint8] | type[np.uint16]) -> list[NDArray[Any]]:
        """For each row `size` whole numbers of all values of a dtype, as `Generator.integers(0, 2**bits, size)`."""
        return list(self._arrays(rows, sizes, dtype))

    def _arrays(
        self, rows: Rows, sizes: Sequence[int], dtype: type[np.uint8] | type[np.uint16]
    ) -> Iterator[NDArray[Any]]:
        philox: Any = np.random.Philox(key=0)
        rng = np.random.Generator(philox)
        bits = np.iinfo(dtype).bits
        for row, size in zip(rows.tolist(), sizes, strict=True):
            philox.state = self._state(row)
            yield rng.integers(0, 2**bits, size, dtype)
            # 32 bits at a time; what is left of the last ones is thrown away.
            used = -(-size * bits // 32) - int(self._has_half[row])
            if used >= 0:
                state = philox.state
                self._next[row] += -(-used // 2)
                self._has_half[row], self._halves[row] = bool(state["has_uint32"]), state["uinteger"]

    def _state(self, row: int) -> dict[str, Any]:
        """NumPy's state of a row's generator."""
        done = int(self._next[row])
        block = -(-done // _WORDS)
        words = self._block(row, block - 1) if done else np.zeros(_WORDS, np.uint64)
        return {
            "bit_generator": "Philox",
            "state": {"counter": np.asarray([block, 0, 0, 0], np.uint64), "key": self._keys[row]},
            "buffer": words,
            "buffer_pos": done - (block - 1) * _WORDS if done else _WORDS,
            "has_uint32": int(self._has_half[row]),
            "uinteger": int(self._halves[row]),
        }

    def states(self) -> list[dict[str, Any]]:
        """For each picture the state that NumPy's generator would have now."""
        return [self._state(row) for row in range(len(self))]

    def _block(self, row: int, block: int) -> NDArray[np.uint64]:
        known = self._words[row, block * _WORDS : (block + 1) * _WORDS]
        return known if len(known) else _blocks(self._keys[row : row + 1], np.asarray([block + 1], np.uint64))[0]

    def _words_of(self, rows: Rows) -> NDArray[np.uint64]:
        """The next 64 bits of each row."""
        numbers = self._next[rows]
        self._next[rows] = numbers + 1
        if not len(numbers):
            return np.zeros(0, np.uint64)
        missing = int(numbers.max()) // _WORDS + 1 - self._words.shape[1] // _WORDS
        if missing > 2 or (missing > 0 and len(rows) * 4 < len(self)):
            # A few rows are far ahead of the others, after a whole array.
            blocks = _blocks(self._keys[rows], (numbers // _WORDS + 1).astype(np.uint64))
            return blocks[np.arange(len(rows)), numbers % _WORDS]
        for _ in range(missing):
            counter = np.full(len(self), self._words.shape[1] // _WORDS + 1, np.uint64)
            self._words = np.concatenate([self._words, _blocks(self._keys, counter)], axis=1)
        return self._words[rows, numbers]

    def _half_words_of(self, rows: Rows) -> NDArray[np.uint64]:
        """The next 32 bits of each row."""
        has_half = self._has_half[rows]
        drawn = self._halves[rows]
        fresh = rows[~has_half]
        words = self._words_of(fresh)
        drawn[~has_half] = words & _LOW
        self._halves[fresh] = words >> _HALF
        self._has_half[rows] = ~has_half
        return drawn


def _blocks(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The words of Philox's blocks.

    Args:
        keys: n x 2.
        counters: n; NumPy increments before it computes, so the first block has counter 1.

    Returns:
        n x 4.
    """
    zero = np.zeros(len(keys), np.uint64)
    a, b, c, d = counters, zero, zero, zero
    first, second = keys[:, 0], keys[:, 1]
    for number in range(_ROUNDS):
        if number:
            first, second = first + _WEYL[0], second + _WEYL[1]
        high_a, low_a = _product(a, _MULTIPLIERS[0])
        high_c, low_c = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
    return np.stack([a, b, c, d], axis=1)


def _product(left: NDArray[np.uint64], right: np.uint64) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The upper and the lower 64 bits of a product of 128."""
    left_high, left_low = left >> _HALF, left & _LOW
    right_high, right_low = right >> _HALF, right & _LOW
    middle = left_high * right_low + ((left_low * right_low) >> _HALF)
    other = left_low * right_high + (middle & _LOW)
    return left_high * right_high + (middle >> _HALF) + (other >> _HALF), left * right
