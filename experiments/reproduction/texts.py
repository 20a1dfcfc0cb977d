"""How the figures of a study are written."""

import math
from collections.abc import Sequence

from adabatch_jax.reporting.quoted_figures import UNKNOWN
from adabatch_jax.system.number_texts import count_text
from experiments.reproduction.results import ArmResult
from experiments.reproduction.statistics import Estimate, Interval


def batch_text(arm: ArmResult) -> str:
    """The batch sizes from first to last, or the schedule while the plan is unknown."""
    if arm.plan is None:
        return arm.config.batch_schedule
    return sizes_text(arm.plan.batch_sizes)


def n_text(arm: ArmResult) -> str:
    """How many runs stand behind the figures, and what became of the others.

    Either only a number, or "4 of 5 (1 diverged)".
    """
    if len(arm.finished) == len(arm.seeds):
        return str(len(arm.seeds))
    text = f"{len(arm.finished)} of {len(arm.seeds)}"
    return f"{text} ({len(arm.diverged)} diverged)" if arm.diverged else text


def estimate_text(measured: Estimate, decimals: int = 2) -> str:
    """Mean and standard deviation.

    >>> from experiments.reproduction.statistics import estimate
    >>> estimate_text(estimate([8.0, 9.0, 10.0])), estimate_text(estimate([8.0]))
    ('9.00 ± 1.00', '8.00')
    """
    if measured.mean is None:
        return UNKNOWN
    mean = f"{measured.mean:,.{decimals}f}"
    return mean if measured.sd is None else f"{mean} ± {measured.sd:,.{decimals}f}"


def seconds_text(measured: Estimate) -> str:
    """Mean and standard deviation of seconds, with three digits of the mean or more.

    >>> from experiments.reproduction.statistics import estimate
    >>> seconds_text(estimate([30.2, 31.3])), seconds_text(estimate([12345.6]))
    ('30.8 ± 0.8', '12,346')
    """
    return estimate_text(measured, num_decimals(measured.mean))


def num_decimals(seconds: float | None) -> int:
    """How many decimals give three digits.

    >>> num_decimals(12345.6), num_decimals(31.24), num_decimals(0.0123)
    (0, 1, 4)
    """
    return min(max(2 - math.floor(math.log10(seconds)), 0), 4) if seconds else 0


def interval_text(measured: Estimate, decimals: int = 2) -> str:
    """The interval, or why there is none."""
    if measured.interval is None:
        return "all equal" if measured.n > 1 else UNKNOWN
    return " to ".join(f"{end:.{decimals}f}" for end in measured.interval)


def sizes_text(sizes: Sequence[int]) -> str:
    """The first and the last of several batch sizes.

    >>> sizes_text([128, 256, 2048]), sizes_text([128])
    ('128 to 2,048', '128')
    """
    sizes = list(dict.fromkeys(sizes))
    ends = sizes if len(sizes) == 1 else (sizes[0], sizes[-1])
    return " to ".join(map(count_text, ends))


def signed_interval_text(interval: Interval | None, decimals: int = 2) -> str:
    """The two ends of a difference.

    >>> signed_interval_text((-0.204, 0.4)), signed_interval_text(None)
    ('-0.20 to +0.40', '-')
    """
    return "-" if interval is None else " to ".join(f"{end:+.{decimals}f}" for end in interval)


def p_text(p: float | None) -> str:
    """A p value with what digits mean something.

    >>> p_text(0.0432), p_text(0.00001), p_text(None)
    ('0.043', '< 0.001', '-')
    """
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
