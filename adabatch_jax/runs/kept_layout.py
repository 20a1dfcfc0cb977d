"""The layout that a run was begun with, which it keeps unless its user says otherwise."""

from collections.abc import Collection, Mapping
from typing import Any

from adabatch_jax.config.settings import AUTO, Layout
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError


def check_microbatches(
    saved: Mapping[str, Any],
    layout: Layout,
    plan: BatchPlan,
    independent_groups: int | None,
    allow_change: Collection[str],
) -> None:
    """Raises a UsageError where other micro-batches would change more than rounding.

    They do where the loss doesn't say which rows it keeps apart: BatchNorm without a group
    normalizes over a whole micro-batch. A new run has no `saved` layout.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("8", num_examples=80, duration="1ep")
    >>> check_microbatches({"microbatch_size": 4}, Layout(microbatch_size=2), plan, None, ())
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: microbatch_size: the run was begun with 4, and 2 ...
    >>> check_microbatches({"microbatch_size": 4}, Layout(microbatch_size=2), plan, 1, ())
    """
    size, name = layout.microbatch_size, "microbatch_size"
    if name not in saved or size == AUTO or independent_groups is not None or name in allow_change:
        return
    before, now = Layouts(saved[name]), Layouts(size)
    if all(before.of(batch) == now.of(batch) for batch in plan.batch_sizes):
        return
    raise UsageError(
        f"{name}: the run was begun with {_text(saved[name])}, and {_text(size)} may change what is "
        "normalized together, not only how it is rounded; leave it at 'auto', which keeps it, or "
        f"go on with the other one with --allow-change {name}."
    )


def layout_changes(
    saved: Mapping[str, Any], now: Mapping[str, Any], step: int
) -> list[dict[str, Any]]:
    """What differs of the layout from an update on, as a run's decisions: JSON values.

    >>> layout_changes({"devices": 1}, {"devices": 2}, step=7)
    [{'kind': 'layout', 'step': 7, 'setting': 'devices', 'from': 1, 'to': 2}]
    """
    return [
        {"kind": "layout", "step": step, "setting": name, "from": saved[name], "to": value}
        for name, value in now.items()
        if name in saved and saved[name] != value
    ]


def change_text(change: Mapping[str, Any]) -> str:
    """A change of the layout, for people."""
    return (
        f"note: the run goes on with {change['setting']} {_text(change['to'])} instead of "
        f"{_text(change['from'])}: the same examples in the same batches, rounded differently"
    )


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
