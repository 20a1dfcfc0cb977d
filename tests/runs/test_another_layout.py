"""Going on with a run under another layout: what is refused, what is told, what is kept."""

import json

import pytest

from adabatch_jax.config import Layout, Operation
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from tests.runs.small_run import N, train

PLAN = make_plan("4, 1ep: 7, 2.3ep: 16", N, "4.2ep")


def begun_with(tmp_path, layout, **options):
    """A run that was stopped after 13 updates."""
    stop = {"on_step": lambda finished, *_: finished == 13}
    train(PLAN, tmp_path, layout=layout, **stop, **options)


def checkpoints_of(run):
    return {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")}


def test_other_microbatches_are_refused_where_they_may_change_more_than_rounding(tmp_path):
    begun_with(tmp_path, Layout(microbatch_size=4, steps_per_dispatch=1))
    before = checkpoints_of(tmp_path)
    for size in (None, 2):
        with pytest.raises(UsageError, match="^microbatch_size: .* 4, .*--allow-change"):
            train(PLAN, tmp_path, layout=Layout(microbatch_size=size))
    assert checkpoints_of(tmp_path) == before
    # One that its user allows is recorded.
    kept = train(
        PLAN, tmp_path, layout=Layout(microbatch_size=2),
        allow_change=("microbatch_size",),
    )  # fmt: skip
    assert {"kind": "layout", "step": 13, "setting": "microbatch_size", "from": 4, "to": 2} in (
        kept.summary["decisions"]
    )


def test_another_layout_is_told_key_by_key(tmp_path):
    said = []

    class Said(Progress):
        def message(self, text):
            said.append(text)

    layout = Layout(microbatch_size=4, steps_per_dispatch=1)
    begun_with(tmp_path, layout, independent_groups=1)
    result = train(
        PLAN, tmp_path, layout=Layout(microbatch_size=2, accumulation="split"),
        independent_groups=1, operation=Operation(progress=Said()),
    )  # fmt: skip
    changes = [d for d in result.summary["decisions"] if d["kind"] == "layout"]
    assert {d["setting"]: (d["from"], d["to"]) for d in changes} == {
        "microbatch_size": (4, 2), "accumulation": ("fused", "split"),
    }  # fmt: skip
    for name in ("microbatch_size 2 instead of 4", "accumulation split instead of fused"):
        assert any(name in text for text in said)


def test_auto_keeps_the_layout_that_the_run_was_begun_with(tmp_path):
    begun_with(tmp_path, Layout(microbatch_size=4, steps_per_dispatch=3))
    result = train(PLAN, tmp_path)
    assert result.summary["decisions"] == []
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["layout"]["microbatch_size"] == 4
    assert environment["layout"]["steps_per_dispatch"] == 3
