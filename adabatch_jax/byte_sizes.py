"""Sizes in bytes as people write them; no third-party import."""

import re

from adabatch_jax.errors import UsageError

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
}  # fmt: skip
_BYTES = re.compile(r"(\d{1,30}(?:\.\d+)?)\s*([kmgt]i?)b?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Reads a size such as "16GiB" (2**30 bytes each), "80GB" (10**9 bytes each) or "512MiB".

    Raises:
      UsageError: it is no size with a unit, or nothing.

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
