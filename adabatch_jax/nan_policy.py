"""What to do about a loss or gradient that isn't finite; no third-party import."""

import dataclasses
import re

from adabatch_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class NanPolicy:
    """What follows an update whose loss or gradients aren't finite.

    Attributes:
      kind: "stop" ends the run; "skip" leaves the update out; "rollback" takes the weights of the
        newest checkpoint.
      limit: how many updates a run may leave out; None where it leaves out none.
    """

    kind: str
    limit: int | None = None


def parse_nan_policy(text: str) -> NanPolicy:
    """Reads "stop", "skip:N" or "rollback".

    Raises:
      UsageError: it is none of these.

    >>> parse_nan_policy("skip:3")
    NanPolicy(kind='skip', limit=3)
    """
    text = text.strip()
    if text in ("stop", "rollback"):
        return NanPolicy(text)
    match = re.fullmatch(r"skip:([1-9]\d{0,17})", text)
    if match is None:
        raise UsageError(f"{text!r} is not stop, skip:N (leave out up to N updates) or rollback.")
    return NanPolicy("skip", int(match[1]))
