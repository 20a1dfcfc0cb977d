"""How numbers and names are shown to people: on the terminal, in plots and in reports alike."""

import math
from collections.abc import Sequence


def duration_text(seconds: float) -> str:
    """Writes seconds as a clock does, rounded up: a countdown ends at 0:00, not before.

    >>> duration_text(41), duration_text(3_725), duration_text(200_000)
    ('0:41', '1:02:05', '2 d 7:33:20')
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour}:{minute:02}:{second:02}"
    if hour:
        return f"{hour}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"


def seconds_text(seconds: float) -> str:
    """Writes a measured time with three digits, or as a clock from two minutes on.

    >>> seconds_text(0.01234), seconds_text(31.24), seconds_text(400)
    ('0.0123 s', '31.2 s', '6:40')
    """
    if not math.isfinite(seconds):
        return "?"
    return f"{seconds:.3g} s" if seconds < 120 else duration_text(round(seconds))


def percent_text(fraction: float, digits: int = 1) -> str:
    """Writes a fraction in percent.

    >>> percent_text(0.9611)
    '96.1 %'
    """
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else "?"


def loss_text(loss: float) -> str:
    """Writes a loss with four decimals where they say something, in powers of ten elsewhere.

    >>> loss_text(0.43214), loss_text(0.0000123), loss_text(123456.0), loss_text(math.nan)
    ('0.4321', '1.23e-05', '1.23e+05', 'nan')
    """
    if loss == 0 or 1e-3 <= abs(loss) < 1e4:
        return f"{loss:.4f}"
    return f"{loss:.2e}"


def count_text(count: float) -> str:
    """Writes a count in full with separators.

    >>> count_text(5_000_000), count_text(12_345.6)
    ('5,000,000', '12,346')
    """
    return f"{count:,.0f}" if math.isfinite(count) else "?"


def printable(text: str) -> str:
    """A text whose control characters are written out: names of files may hold any.

    >>> printable("run\\x1b[2J")
    'run\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def table_lines(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of texts, each column aligned on the right.

    >>> table_lines([["batch", "steps"], ["64", "1,000"]])
    ['batch  steps', '   64  1,000']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in table
    ]
