"""Where steps of one size begin: the arithmetic under a plan, in closed form."""

import dataclasses
from functools import cached_property
from typing import Literal, get_args

Remainder = Literal["carry", "partial", "drop"]
REMAINDERS: tuple[Remainder, ...] = get_args(Remainder)


@dataclasses.dataclass(frozen=True)
class Stride:
    """Consecutive steps of one batch size, from a sample on, as if they never ended.

    At an epoch's end, "carry" goes on across it, "partial" cuts the batch short, and "drop" skips
    what is left when it is less than a batch.
    """

    start_sample: int  # or arrays of NumPy or JAX, for `begin`; so is the batch size
    batch_size: int
    num_examples: int | None
    remainder: str

    @cached_property
    def steps_in_first_epoch(self) -> int:
        return self._steps_within(self.num_examples - self.start_sample % self.num_examples)

    @cached_property
    def steps_per_epoch(self) -> int:
        return self._steps_within(self.num_examples)

    def _steps_within(self, room: int) -> int:
        return room // self.batch_size if self.remainder == "drop" else -(-room // self.batch_size)

    def begin(self, k: int) -> int:
        """The sample at which step k (from 0) begins."""
        in_first_epoch = self.start_sample + k * self.batch_size
        if self.remainder == "carry":
            return in_first_epoch
        epochs, within = divmod(k - self.steps_in_first_epoch, self.steps_per_epoch)
        epoch = self.start_sample // self.num_examples + 1 + epochs
        later = epoch * self.num_examples + within * self.batch_size
        # Without a branch, which arrays can't take.
        return later + (epochs < 0) * (in_first_epoch - later)

    def end(self, k: int) -> int:
        """The sample after the last one of step k; what a "drop" skips is not in it."""
        begin = self.begin(k)
        end = begin + self.batch_size
        if self.remainder == "partial":
            end = min(end, (begin // self.num_examples + 1) * self.num_examples)
        return end

    def unlike_from(self, k: int) -> set[int]:
        """Steps from k on among which each number of examples is, where it comes first."""
        if self.remainder != "partial":
            return {k}
        # All epochs behind the next one are like it.
        done = self.steps_in_first_epoch
        if k >= done:
            done += ((k - done) // self.steps_per_epoch + 1) * self.steps_per_epoch
        return {k, k + 1, done - 1, done - 1 + self.steps_per_epoch}

    def progress(self, sample: int) -> tuple[int, int, int]:
        """The steps that end by a sample or an array of them, all steps beginning at sample 0.

        Returns (whole steps, p, q): p / q of the next one. "drop" makes no progress in what it
        skips.
        """
        if self.remainder == "carry":
            return *divmod(sample, self.batch_size), self.batch_size
        epoch, offset = divmod(sample, self.num_examples)
        step, rest = divmod(offset, self.batch_size)
        tail = self.num_examples % self.batch_size
        is_in_tail = step == self.num_examples // self.batch_size
        steps = epoch * self.steps_per_epoch + step
        if self.remainder == "drop":
            return steps, rest * (1 - is_in_tail), self.batch_size
        return steps, rest, self.batch_size + is_in_tail * (tail - self.batch_size)

    def steps_before(self, sample: int) -> int:
        """The number of steps that begin before `sample`."""
        if sample <= self.start_sample:
            return 0
        count = -(-(sample - self.start_sample) // self.batch_size)
        if self.remainder == "carry":
            return count
        first_epoch = self.start_sample // self.num_examples
        epoch, offset = divmod(sample, self.num_examples)
        if epoch == first_epoch:
            return min(count, self.steps_in_first_epoch)
        whole = (epoch - first_epoch - 1) * self.steps_per_epoch
        within = min(self.steps_per_epoch, -(-offset // self.batch_size))
        return self.steps_in_first_epoch + whole + within
