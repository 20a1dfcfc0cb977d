"""Several sources of sequences as one: one after the other, or mixed in given shares."""

import hashlib
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from adabatch_jax.data.parallel_reading import checked_indices
from adabatch_jax.system.errors import UsageError

# The longest pattern in which sources take turns; shares that need a longer one are rounded to it.
_LONGEST_PATTERN = 2**16


class TokenMixture:
    """A source over several; which sequence an index is follows from the index alone.

    Without weights the sources lie one after the other, and each sequence is one example.

    With weights they take turns in a pattern that repeats, of the fewest places that give each its
    exact share (of at most 65,536, to which other shares are rounded), evenly spread. A source's
    n-th turn is its n-th sequence, and its first one again behind its last. A pass, `len`, is over
    when each sequence of each source has come, so those of some come several times. The indices
    may be read along for ever too: of a plan with `num_examples=None` the batches are mixed in the
    same shares at each position.

    Args:
      sources: those to mix, as `token_source` makes them of a file.
      weights: a number above 0 for each; only their ratios matter.

    Raises:
      UsageError: no sources, weights that can't be, or sources that don't go together.

    >>> from adabatch_jax.data.sources import array_source
    >>> sources = [array_source({"tokens": np.arange(n) + 10 * n}) for n in (6, 2)]
    >>> mixture = TokenMixture(sources, [0.75, 0.25])
    >>> len(mixture), mixture.read(np.arange(8))["tokens"].tolist()
    (8, [60, 61, 20, 62, 63, 64, 21, 65])
    """

    def __init__(self, sources: Sequence[Any], weights: Sequence[Any] | None = None):
        if not sources:
            raise UsageError("there are no files to take sequences from; give at least one.")
        self._sources = tuple(sources)
        self.sequence_length = getattr(sources[0], "sequence_length", None)
        self.vocabulary_size = getattr(sources[0], "vocabulary_size", None)
        self._shares = None if weights is None else _shares(weights, len(sources))
        lengths = [len(source) for source in sources]
        self._before = np.concatenate([[0], np.cumsum(lengths)])
        self._num_examples = int(self._before[-1])
        if self._shares is not None:
            # Of each source and each place of the pattern: which turn of its it is.
            self._pattern = _pattern(_counts(self._shares))
            is_turn = self._pattern == np.arange(len(sources))[:, None]
            self._turns, self._per_pattern = np.cumsum(is_turn, axis=1) - 1, is_turn.sum(axis=1)
            self._num_examples = max(map(self._end_of, range(len(sources)), lengths))

    def __len__(self) -> int:
        return self._num_examples

    @property
    def num_classes(self) -> int | None:
        """What a network is told of the vocabulary."""
        return self.vocabulary_size

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each index the source's number and the sequence in it."""
        if self._shares is None:
            indices = checked_indices(indices, len(self))
            numbers = np.searchsorted(self._before, indices, "right") - 1
            return numbers, indices - self._before[numbers]
        rounds, place = np.divmod(np.asarray(indices, np.int64), len(self._pattern))
        numbers = self._pattern[place]
        turns = rounds * self._per_pattern[numbers] + self._turns[numbers, place]
        return numbers, turns % np.diff(self._before)[numbers]

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads sequences, in any order and also several times.

        Raises:
          IndexError: without weights, an index is out of range.
          ExampleError: as `TokenSource.read`.
        """
        numbers, inside = self.places(indices)
        arrays: dict[str, np.ndarray] = {}
        for number in np.unique(numbers).tolist() or [0]:
            rows = np.flatnonzero(numbers == number)
            part = self._sources[number].read(inside[rows])
            for name, values in part.items():
                if name not in arrays:
                    arrays[name] = np.empty((len(numbers), *values.shape[1:]), values.dtype)
                arrays[name][rows] = values
        return arrays

    def digest(self) -> str:
        """A digest of what the sources hold and of their shares."""
        shares = self._shares and [*map(str, self._shares)]
        content = [[source.digest() for source in self._sources], shares]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _end_of(self, number: int, length: int) -> int:
        """Behind which index each of a source's sequences has come."""
        rounds, rest = divmod(length - 1, int(self._per_pattern[number]))
        place = int(np.flatnonzero(self._turns[number] == rest)[0])
        return rounds * len(self._pattern) + place + 1


def _shares(weights: Sequence[Any], number: int) -> tuple[Fraction, ...]:
    """Weights as exact shares of 1: a float is what it is written as."""
    try:
        exact = [Fraction(w) if isinstance(w, Fraction) else Fraction(str(w)) for w in weights]
    except (ValueError, ZeroDivisionError):
        exact = []
    if len(exact) != number or any(weight <= 0 for weight in exact):
        raise UsageError(
            f"the weights of a mixture are a number above 0 for each file, got {list(weights)!r}."
        )
    return tuple(weight / sum(exact) for weight in exact)


def _counts(shares: Sequence[Fraction]) -> list[int]:
    """How often each source comes in a pattern; the largest remainders are rounded up."""
    length = min(math.lcm(*(share.denominator for share in shares)), _LONGEST_PATTERN)
    counts = [math.floor(share * length) for share in shares]
    left = length - sum(counts)
    order = sorted(range(len(shares)), key=lambda n: counts[n] - shares[n] * length)
    for number in order[:left]:
        counts[number] += 1
    if 0 in counts:
        raise UsageError(
            f"a mixture's smallest share is 1/{_LONGEST_PATTERN:,}, got "
            f"{float(min(shares)):.3g}; give it a larger weight, or leave the file out."
        )
    return counts


def _pattern(counts: Sequence[int]) -> np.ndarray:
    """Whose turn each place is: a source's k-th of n turns comes at about (k + 1/2) / n."""
    numbers = np.repeat(np.arange(len(counts)), counts)
    at = np.concatenate([(2 * np.arange(count) + 1) / (2 * count) for count in counts])
    return numbers[np.argsort(at, kind="stable")]
