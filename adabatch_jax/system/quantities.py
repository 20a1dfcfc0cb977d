"""Bytes, times, bandwidths and counts as people write them, and seeds; no third-party import."""

import operator
import re
from typing import Any

from adabatch_jax.system.errors import UsageError

SEED_LIMIT = 2**32  # what JAX tells apart without 64 bits: it would leave out what is above


def checked_seed(seed: Any) -> int:
    """Returns the seed as an int; a UsageError where it is none that all parts of a run can use.

    >>> checked_seed(2**32 - 1)
    4294967295
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise UsageError(f"`seed` must be a whole number, got {seed!r}.") from None
    if not 0 <= number < SEED_LIMIT:
        raise UsageError(f"`seed` must be from 0 to 2**32 - 1, got {number}.")
    return number


_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
}  # fmt: skip
_BYTES = re.compile(r"(\d{1,30}(?:\.\d+)?)\s*([kmgt]i?)b?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Reads a size such as "16GiB" (2**30 bytes each), "80GB" (10**9 bytes each) or "512MiB".

    >>> parse_bytes("16GiB"), parse_bytes("1.5 GB"), parse_bytes("512M")
    (17179869184, 1500000000, 512000000)
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no size in bytes, write it as '16GiB' or '80GB'.")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def bytes_text(num_bytes: int) -> str:
    """Writes a size for people.

    >>> bytes_text(3 * 2**30), bytes_text(1_500_000), bytes_text(98_056), bytes_text(900)
    ('3.00 GiB', '1.4 MiB', '95.8 KiB', '900 bytes')
    """
    if num_bytes < 2**10:
        return f"{num_bytes} bytes"
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:,.2f} GiB"


_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_NUMBER = r"(\d+(?:\.\d+)?)"
_SPAN = re.compile("".join(rf"(?:{_NUMBER}\s*{unit}\s*)?" for unit in _SECONDS), re.IGNORECASE)
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_FORMS = "write it as '3h50m', '90s', '1d2h' or '3:50:00'"


def parse_seconds(text: str) -> float:
    """Reads a span of time such as "3h50m", "90s", "1d2h", "1.5h" or "3:50:00", in seconds."""
    text = text.strip()
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock.groups()
        total = float(hours) * 3_600 + float(minutes) * 60 + float(seconds)
    elif re.fullmatch(_NUMBER, text):
        raise UsageError(f"the time {text!r} has no unit; {_FORMS}.")
    elif text and (match := _SPAN.fullmatch(text)):
        parts = zip(match.groups(default="0"), _SECONDS.values(), strict=True)
        total = sum(float(number) * seconds for number, seconds in parts)
    else:
        raise UsageError(f"{text!r} is no span of time; {_FORMS}.")
    if not 0 < total < float("inf"):
        raise UsageError(f"the time {text!r} must be longer than nothing, and finite.")
    return float(total)


_BANDWIDTH = re.compile(r"(\d{1,30}(?:\.\d+)?)\s*([kMGT])(B|bit)/s")


def parse_bandwidth(text: str) -> float:
    """Reads bytes per second, such as "25GB/s" or, an eighth of it, "25Gbit/s" (10**9 each).

    >>> parse_bandwidth("25GB/s"), parse_bandwidth("400Gbit/s")
    (25000000000.0, 50000000000.0)
    """
    match = _BANDWIDTH.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(
            f"{text!r} is no bandwidth; write it as '50GB/s' (bytes) or '400Gbit/s' (bits)."
        )
    return float(match[1]) * _UNITS[match[2].lower()] / (8 if match[3] == "bit" else 1)


_LATENCY = re.compile(r"(\d{1,30}(?:\.\d+)?)\s*(ns|us|µs|ms|s)")
_PER_SECOND = {"ns": 1e9, "us": 1e6, "µs": 1e6, "ms": 1e3, "s": 1.0}


def parse_latency(text: str) -> float:
    """Reads a short time such as "5us", "0.5ms" or "0s", in seconds.

    >>> parse_latency("5us"), parse_latency("0s")
    (5e-06, 0.0)
    """
    match = _LATENCY.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no latency; write it as '5us' or '0.1ms'.")
    return float(match[1]) / _PER_SECOND[match[2]]


def parse_counts(text: str) -> tuple[int, ...]:
    """Reads whole numbers of at least 1 with commas between, smallest first, each once.

    >>> parse_counts("16, 1,4"), parse_counts("8")
    ((1, 4, 16), (8,))
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise UsageError(f"{text!r} must be numbers of at least 1, such as 8 or 1,4,16.")
    return tuple(sorted(set(map(int, words))))
