"""Spans of wall-clock time as people write them; no third-party import."""

import re

from adabatch_jax.errors import UsageError

_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_NUMBER = r"(\d+(?:\.\d+)?)"
_UNITS = re.compile("".join(rf"(?:{_NUMBER}\s*{unit}\s*)?" for unit in _SECONDS), re.IGNORECASE)
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_FORMS = "write it as '3h50m', '90s', '1d2h' or '3:50:00'"


def parse_seconds(text: str) -> float:
    """Reads a span of time such as "3h50m", "90s", "1d2h", "1.5h" or "3:50:00", in seconds.

    Raises:
      UsageError: it is no span of time, it has no unit, or it is nothing.

    >>> parse_seconds("3h50m"), parse_seconds("3:50:00"), parse_seconds("1.5h")
    (13800.0, 13800.0, 5400.0)
    >>> parse_seconds("90")
    Traceback (most recent call last):
    adabatch_jax.errors.UsageError: the time '90' has no unit; write it as ...
    """
    text = text.strip()
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock.groups()
        total = float(hours) * 3_600 + float(minutes) * 60 + float(seconds)
    elif re.fullmatch(_NUMBER, text):
        raise UsageError(f"the time {text!r} has no unit; {_FORMS}.")
    elif text and (match := _UNITS.fullmatch(text)):
        parts = zip(match.groups(default="0"), _SECONDS.values(), strict=True)
        total = sum(float(number) * seconds for number, seconds in parts)
    else:
        raise UsageError(f"{text!r} is no span of time; {_FORMS}.")
    if not 0 < total < float("inf"):
        raise UsageError(f"the time {text!r} must be longer than nothing, and finite.")
    return float(total)
