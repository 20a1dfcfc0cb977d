"""Which coupling is meant for which optimizer."""

import itertools
import math
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from adabatch_jax.schedules.learning_rate_at_step import (
    Coupling,
    ResolvedRate,
    coupling_factors,
)
from adabatch_jax.schedules.learning_rate_text import coupling_power
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError, did_you_mean

Optimizer = Literal["sgd", "adam"]

_ROUNDING = 1e-5  # of rates in float32


def coupling_warnings(
    plan: BatchPlan,
    rate: ResolvedRate | None,
    coupling: Coupling,
    reference_batch_size: int | None,
    optimizer: Optimizer,
) -> Iterator[str]:
    """Yields a sentence for what goes wrong with an optimizer: the wrong rule, and cuts too small.

    Args:
      rate: the coupled rate, where it is described; None: it isn't looked at.
      optimizer: "sgd", with momentum or not; or "adam", as all that divide by a gradient's size.

    Raises:
      UsageError: `optimizer` is neither.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("64, 2ep: 128", num_examples=1000, duration="4ep")
    >>> [sentence[:42] for sentence in coupling_warnings(plan, None, "linear", None, "adam")]
    ["the coupling 'linear' is meant for sgd; wi"]
    """
    if optimizer not in get_args(Optimizer):
        raise UsageError(
            "`optimizer` must be 'sgd' or, for all that divide by a gradient's size, 'adam', got "
            f"{optimizer!r}{did_you_mean(str(optimizer), get_args(Optimizer)) or '.'}"
        )
    factors = coupling_factors(plan, coupling, reference_batch_size)
    power = (
        None
        if callable(coupling) or all(factor == 1 for factor in factors)
        else coupling_power(coupling)
    )
    if optimizer == "adam" and power is not None and power >= 1:
        yield (
            f"the coupling {coupling!r} is meant for sgd; with adam and adamw 'sqrt' is the usual "
            "choice (arXiv:2205.10287)."
        )
    elif optimizer == "adam" and rate is not None:
        yield from _small_cuts(plan, rate, factors)
    elif optimizer == "sgd" and power is not None and 0 < 2 * power <= 1:
        yield (
            f"the coupling {coupling!r} is meant for adam and adamw; with sgd 'linear' is the usual "
            "choice (arXiv:1706.02677)."
        )


def _small_cuts(plan: BatchPlan, rate: ResolvedRate, factors: list) -> Iterator[str]:
    """Seesaw's condition: where the rate is cut, by no less than the root of the batch's growth."""
    for (before, phase), (factor_before, factor) in zip(
        itertools.pairwise(plan.phases), itertools.pairwise(factors)
    ):
        step, grown = phase.start_step, phase.batch_size / before.batch_size
        pieces = np.searchsorted(rate.steps, [step - 1, step], side="right") - 1
        if grown <= 1 or not rate.at(step) or (rate.curves[pieces] >= 0).any():
            continue  # a curve isn't cut
        cut = rate.at(step - 1) / rate.at(step)
        is_cut = cut * float(factor / factor_before) > 1 + _ROUNDING
        # Both sizes may have been rounded to whole examples, as Seesaw's are.
        least = (phase.batch_size - 0.5) / (before.batch_size + 0.5)
        if is_cut and cut < math.sqrt(least) * (1 - _ROUNDING):
            yield (
                f"at update {step:,} the rate is cut by {cut:.4g} where the batch grows by "
                f"{grown:.4g}; adam is stable where a cut is by at least the growth's root, "
                f"{math.sqrt(grown):.4g} (Seesaw, arXiv:2510.14717)."
            )
            return
