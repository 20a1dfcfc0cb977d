"""Schedules as Megatron-LM's flags and Levanter's list write them, read with their own arithmetic.

Megatron-LM: `megatron/core/num_microbatches_calculator.py`, where both flags are functions of the
samples consumed. Levanter: `lib/levanter/src/levanter/schedule.py` of marin-community/marin.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, get_args

from adabatch_jax.schedules.batch_size_schedules import (
    PiecewiseConstant,
    Schedule,
    constant,
    linear_ramp,
    piecewise_constant,
)
from adabatch_jax.schedules.durations import TOKENS_OR_SAMPLES, Duration
from adabatch_jax.schedules.text_reader import excerpt
from adabatch_jax.system.errors import UsageError, did_you_mean

Dialect = Literal["megatron", "levanter"]
MEGATRON = "megatron"  # the word that its steps begin with in a text of ours

_MULTIPLES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_NUMBER = re.compile(r"(\d[\d_]*\.?\d*(?:[eE]\+?\d{1,3})?)([KMBT]?)", re.IGNORECASE)
_FLAGS = {"step-batch-size-schedule": 1, "rampup-batch-size": 3, "global-batch-size": 1}


@dataclasses.dataclass(frozen=True)
class MegatronSteps(PiecewiseConstant):
    """Sizes from thresholds in tokens, or in samples where the tokens of an example aren't known.

    They are whole samples rounded down, so a size may begin one sample before our own tokens would
    have it begin.
    """

    def behind(self, num_begun: int) -> list[str]:
        return [f"{at}:{size}" for at, size in self.boundaries[num_begun - 1 :]]

    def __str__(self) -> str:
        return " ".join([MEGATRON, f"0:{self.init_value}", *self.behind(1)])


def read_dialect(text: str, dialect: str) -> Schedule:
    """Reads another system's schedule; a UsageError for what is none, or a system not known."""
    if dialect not in get_args(Dialect):
        known = get_args(Dialect)
        hint = did_you_mean(str(dialect), known) or "."
        raise UsageError(f"unknown dialect {dialect!r}: it is {' or '.join(known)}{hint}")
    return read_levanter(text) if dialect == "levanter" else read_megatron(text)


def read_megatron(text: str) -> Schedule:
    """Reads the value of `--step-batch-size-schedule`, or the flags that set a batch size.

    >>> str(read_megatron("0:768 250B:1536"))
    'megatron 0:768 250B:1536'
    >>> str(read_megatron("--rampup-batch-size 192 16 9765625 --global-batch-size 2048"))
    '192 to 2048 over 9765625sp in 117'
    """
    if not text.lstrip().startswith("--"):
        return read_megatron_steps(text)
    flags = _flags(text)
    steps, ramp = flags.get("step-batch-size-schedule"), flags.get("rampup-batch-size")
    if steps and ramp:
        raise UsageError("Megatron-LM takes --step-batch-size-schedule or --rampup-batch-size.")
    if steps:
        return read_megatron_steps(*steps)
    if "global-batch-size" not in flags:
        raise UsageError(
            f"{excerpt(text)!r} needs --global-batch-size, the size that it ends with."
        )
    end = _whole(*flags["global-batch-size"], text)
    return _ramp(*(_whole(word, text) for word in ramp), end) if ramp else constant(end)


def _flags(text: str) -> dict[str, list[str]]:
    """The values behind each flag of a piece of a command line."""
    flags: dict[str, list[str]] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"can't read {excerpt(text)!r}: {str(error).lower()}.") from None
    for word in words:
        if word.startswith("--"):
            name, is_assigned, value = word[2:].replace("_", "-").partition("=")
            flags[name] = [value] if is_assigned else []
        else:
            [*flags.values()][-1].append(word)
    for name, values in flags.items():
        if name not in _FLAGS:
            raise UsageError(
                f"--{name} sets no batch size in Megatron-LM; give --step-batch-size-schedule, "
                "--rampup-batch-size or --global-batch-size (a --seq-length is --tokens-per-example "
                "here)."
            )
        if name == "step-batch-size-schedule":
            flags[name] = [" ".join(values)]
        elif len(values) != _FLAGS[name]:
            raise UsageError(f"--{name} takes {_FLAGS[name]} numbers, got {' '.join(values)!r}.")
    return flags


def read_megatron_steps(text: str) -> MegatronSteps:
    """Reads "0:768 250B:1536", in any order."""
    entries = sorted(_steps(text), key=lambda entry: entry[0])
    if not entries or entries[0][0] != 0:
        raise UsageError(f"Megatron-LM's schedule {excerpt(text)!r} has no batch size from 0 on.")
    for (before, _), (threshold, _) in zip(entries, entries[1:]):
        if threshold == before:
            raise UsageError(f"Megatron-LM's schedule {excerpt(text)!r} has {threshold} twice.")
    boundaries = ((_threshold(threshold), size) for threshold, size in entries[1:])
    return MegatronSteps(entries[0][1], tuple(boundaries))


def _steps(text: str) -> Iterator[tuple[int, int]]:
    for entry in text.replace(",", " ").split():
        threshold, colon, size = entry.partition(":")
        if not colon:
            raise UsageError(
                f"can't read {entry!r} of Megatron-LM's schedule {excerpt(text)!r}: write "
                "THRESHOLD:SIZE, such as 250B:1536."
            )
        read = _whole(threshold, text), _whole(size, text)
        if read[1] < 1:
            raise UsageError(f"a batch size must be at least 1, got {entry!r}.")
        yield read


def _whole(word: str, text: str) -> int:
    """A number with a suffix, as Megatron-LM computes it: in floating point, then cut off."""
    match = _NUMBER.fullmatch(word)
    try:
        return int(float(match[1]) * _MULTIPLES[match[2].upper()])
    except (TypeError, ValueError, OverflowError):
        raise UsageError(
            f"can't read the number {word!r} in {excerpt(text)!r}: write it as 250B (K, M, B, T)."
        ) from None


def _threshold(value: int) -> Duration:
    return Duration(Fraction(value), TOKENS_OR_SAMPLES, spelling=_text(value))


def _text(value: int) -> str:
    """A whole number with the largest suffix that keeps it whole."""
    suffix = [suffix for suffix, multiple in _MULTIPLES.items() if value % multiple == 0][-1]
    return f"{value // _MULTIPLES[suffix]}{suffix}"


def _ramp(start: int, increment: int, over: int, end: int) -> Schedule:
    """Equal increments over so many samples."""
    if min(start, increment, over) < 1 or end <= start or (end - start) % increment:
        raise UsageError(
            f"Megatron-LM's ramp from {start} by {increment} over {over} samples doesn't come to "
            f"--global-batch-size {end} in whole increments, 1 or more."
        )
    count = (end - start) // increment
    thresholds = megatron_ramp_thresholds(over, count)
    if thresholds == [-(-k * over // count) for k in range(1, count + 1)]:
        return linear_ramp(start, end, over, count + 1)
    sizes = range(start + increment, end + 1, increment)
    # Equal thresholds, of a ramp with more increments than samples: the last one counts.
    return piecewise_constant(start, dict(zip(thresholds, sizes)))


def megatron_ramp_thresholds(over: int, count: int) -> list[int]:
    """The first samples of `count` increments: `int(consumed / (over / count))` in floating point.

    Behind `over` samples there is the last size.
    """
    length = over / count

    def first(k: int) -> int:
        sample = -(-k * over // count)
        while sample > 0 and int((sample - 1) / length) >= k:
            sample -= 1
        while sample <= over and int(sample / length) < k:
            sample += 1
        return sample

    return [first(k) for k in range(1, count + 1)]


_ENTRY = re.compile(  # in either order
    r"(start|value)\s*:\s*(\d+)\s*,?\s*(?!\1)(start|value)\s*:\s*(\d+)"
)


def read_levanter(text: str) -> PiecewiseConstant:
    """Reads the YAML of `train_batch_size`: one number, or a list of `start` (step) and `value`.

    >>> str(read_levanter("- start: 0\\n  value: 32\\n- start: 1000\\n  value: 64"))
    '32, 1000st: 64'
    """
    lines = (line.partition("#")[0] for line in text.splitlines())
    plain = re.sub(r"[\"'\[\]{}]|^\s*(trainer\s*:\s*)?train_batch_size\s*:", " ", "\n".join(lines))
    if re.fullmatch(r"\s*\d+\s*", plain):
        return constant(int(plain))
    matches = ({match[1]: match[2], match[3]: match[4]} for match in _ENTRY.finditer(plain))
    entries = [(int(entry["start"]), int(entry["value"])) for entry in matches]
    if not entries or _ENTRY.sub("", plain).strip(" \n\t-,"):
        raise UsageError(
            f"can't read Levanter's schedule {excerpt(text)!r}: write a list such as '- start: 0, "
            "value: 32', an entry a line."
        )
    _check_starts([start for start, _ in entries], text)
    return piecewise_constant(
        entries[0][1], [(f"{start}st", value) for start, value in entries[1:]]
    )


def _check_starts(starts: Sequence[int], text: str) -> None:
    if starts[0] != 0 or any(b <= a for a, b in zip(starts, starts[1:])):
        raise UsageError(
            f"the starts of Levanter's schedule {excerpt(text)!r} must increase from 0, got "
            f"{', '.join(map(str, starts))}."
        )
