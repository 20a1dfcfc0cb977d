"""The layout that a run was begun with: kept on as many devices, unless its user says otherwise."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from adabatch_jax.config.settings import AUTO, Layout
from adabatch_jax.data.row_layout import BatchLayout, Layouts
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError


def kept(saved: Mapping[str, Any], layout: Layout, num_devices: int) -> Layout:
    """The layout with "auto" replaced, where nothing is chosen by probes: as the run was begun.

    It stays split only as long as nothing else is asked for that split can't do.

    >>> kept({"accumulation": "split", "microbatch_size": 8}, Layout(), 1).accumulation
    'split'
    """
    accumulation, sharded = layout.accumulation, layout.shard_params
    size, number = layout.microbatch_size, layout.steps_per_dispatch
    if accumulation == AUTO and saved.get("accumulation") == "split":
        size = saved["microbatch_size"] if size == AUTO else size
        accumulation = "split" if size is not None and number in (1, AUTO) else AUTO
    if accumulation == AUTO:
        size, accumulation = layout.microbatch_size, "fused"
    if sharded == AUTO:
        sharded = num_devices > 1 and saved.get("shard_params", False)
    return dataclasses.replace(
        layout, microbatch_size=size, accumulation=accumulation, shard_params=sharded
    )


def chosen_anew(
    saved: Mapping[str, Any], plan: BatchPlan, independent_groups: int | None, num_shards: int
) -> tuple[dict[str, Any], str | None]:
    """What of a run's layout stays where another number of devices shares a batch out.

    Micro-batches count examples over all devices: what was fast and fitted on one device leaves
    sixteen of them a sixteenth of the rows each. So they, and the updates per dispatch, are chosen
    anew, but where other micro-batches would change what is computed together, see
    `check_microbatches`.

    Returns:
      The saved layout without what is to be chosen anew, and a sentence where micro-batches stay
      although the devices are others; or None.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("8", num_examples=80, duration="1ep")
    >>> saved = {"batch_shards": 1, "microbatch_size": 4, "steps_per_dispatch": 2}
    >>> chosen_anew(saved, plan, 2, num_shards=1)[0] == saved
    True
    >>> chosen_anew(saved, plan, 2, num_shards=2)
    ({'batch_shards': 1}, None)
    >>> chosen_anew(saved, plan, None, num_shards=2)
    ({'batch_shards': 1, 'microbatch_size': 4}, 'note: the run keeps micro-batches of 4 on 2 ...')
    """
    if saved.get("batch_shards", num_shards) == num_shards:
        return dict(saved), None
    left = {name: value for name, value in saved.items() if name != "steps_per_dispatch"}
    size = saved["microbatch_size"]
    if all(_keeps(Layouts(size).of(batch), independent_groups) for batch in plan.batch_sizes):
        del left["microbatch_size"]
        return left, None
    if size is None or size >= max(plan.batch_sizes):
        return left, None  # whole batches, which are what is chosen where they fit
    rows = Layouts(size, num_shards).of(max(plan.batch_sizes)).rows_per_device
    return left, (
        f"note: the run keeps micro-batches of {size} on {num_shards} devices, {rows} rows on each: "
        "others could change what BatchNorm normalizes together; with --batchnorm-group-size (in "
        "`fit` independent_groups) they are chosen anew, and --microbatch-size N --allow-change "
        "microbatch_size takes others from here on"
    )


def check_microbatches(
    saved: Mapping[str, Any],
    layout: Layout,
    plan: BatchPlan,
    independent_groups: int | None,
    allow_change: Collection[str],
) -> None:
    """Raises a UsageError where other micro-batches would change more than rounding.

    They do where they cut what the loss computes together: BatchNorm without a group normalizes
    over a whole micro-batch, and with one over so many rows. A new run has no `saved` layout.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("8", num_examples=80, duration="1ep")
    >>> check_microbatches({"microbatch_size": 4}, Layout(microbatch_size=2), plan, None, ())
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: microbatch_size: the run was begun with 4, and 2 ...
    >>> check_microbatches({"microbatch_size": 4}, Layout(microbatch_size=2), plan, 2, ())
    """
    size, name = layout.microbatch_size, "microbatch_size"
    if name not in saved or size == AUTO or name in allow_change:
        return
    before, now = Layouts(saved[name]), Layouts(size)
    group = independent_groups
    for old, new in ((before.of(batch), now.of(batch)) for batch in plan.batch_sizes):
        if old != new and not (_keeps(old, group) and _keeps(new, group)):
            break
    else:
        return
    raise UsageError(
        f"{name}: the run was begun with {_text(saved[name])}, and {_text(size)} may change what is "
        "normalized together, not only how it is rounded; leave it at 'auto', which keeps it, or "
        f"go on with the other one with --allow-change {name}."
    )


def setting_changes(
    kind: str, saved: Mapping[str, Any], now: Mapping[str, Any], step: int
) -> list[dict[str, Any]]:
    """What differs from an update on, of what both know, as a run's decisions: JSON values.

    >>> setting_changes("layout", {"devices": 1}, {"devices": 2, "input": "auto"}, step=7)
    [{'kind': 'layout', 'step': 7, 'setting': 'devices', 'from': 1, 'to': 2}]
    """
    return [
        {"kind": kind, "step": step, "setting": name, "from": saved[name], "to": value}
        for name, value in now.items()
        if name in saved and saved[name] != value
    ]


def change_text(change: Mapping[str, Any]) -> str:
    """A change of the layout, for people."""
    text = (
        f"note: the run goes on with {change['setting']} {_text(change['to'])} instead of "
        f"{_text(change['from'])}: the same examples in the same batches, rounded differently"
    )
    if change["setting"] == "microbatch_size":
        text += "; BatchNorm without a group that divides both normalizes over other rows from now"
    return text


def _keeps(layout: BatchLayout, group_rows: int | None) -> bool:
    """Whether micro-batches are known to cut no group of rows that are computed together."""
    if group_rows is None:
        return False
    return layout.num_microbatches == 1 or layout.microbatch_size % group_rows == 0


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
