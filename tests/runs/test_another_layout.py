"""Going on with a run under another layout: what is refused, what is told, what is kept."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

from adabatch_jax.config import Layout, Operation
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.loss_functions import weighted_mean
from tests.runs.small_run import N, apply, train

PLAN = make_plan("4, 1ep: 14", N, "2.2ep")


class Said(Progress):
    def __init__(self):
        self.texts = []

    def message(self, text):
        self.texts.append(text)


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
    said = Said()
    layout = Layout(microbatch_size=4, steps_per_dispatch=1)
    begun_with(tmp_path, layout, independent_groups=1)
    result = train(
        PLAN, tmp_path, layout=Layout(microbatch_size=2, accumulation="split"),
        independent_groups=1, operation=Operation(progress=said),
    )  # fmt: skip
    changes = [d for d in result.summary["decisions"] if d["kind"] == "layout"]
    assert {d["setting"]: (d["from"], d["to"]) for d in changes} == {
        "microbatch_size": (4, 2), "accumulation": ("fused", "split"),
    }  # fmt: skip
    for name in ("microbatch_size 2 instead of 4", "accumulation split instead of fused"):
        assert any(name in text for text in said.texts)


def test_auto_keeps_the_layout_that_the_run_was_begun_with(tmp_path):
    begun_with(tmp_path, Layout(microbatch_size=4, steps_per_dispatch=3))
    result = train(PLAN, tmp_path)
    assert result.summary["decisions"] == []
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["layout"]["microbatch_size"] == 4
    assert environment["layout"]["steps_per_dispatch"] == 3


def test_a_layout_that_nobody_asks_to_change_is_kept(tmp_path):
    mesh = data_mesh(jax.devices()[:2])
    layout = Layout(microbatch_size=8, accumulation="split", shard_params=True)
    begun_with(tmp_path, layout, mesh=mesh)
    shutil.copytree(tmp_path, tmp_path.with_name("other"))
    said = Said()
    result = train(PLAN, tmp_path, layout=Layout(), mesh=mesh, operation=Operation(progress=said))
    assert result.summary["decisions"] == []
    assert not any("instead of" in text for text in said.texts)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["layout"]["accumulation"] == "split"
    assert environment["layout"]["shard_params"] is True
    said, asked = Said(), Layout(accumulation="fused", shard_params=False)
    result = train(
        PLAN, tmp_path.with_name("other"), layout=asked, mesh=mesh,
        operation=Operation(progress=said),
    )  # fmt: skip
    changes = {d["setting"]: (d["from"], d["to"]) for d in result.summary["decisions"]}
    assert changes == {"accumulation": ("split", "fused"), "shard_params": (True, False)}
    for name in ("accumulation fused instead of split", "shard_params False instead of True"):
        assert any(name in text for text in said.texts)


def test_a_split_run_goes_on_fused_where_what_is_asked_for_needs_it(tmp_path):
    begun_with(tmp_path, Layout(microbatch_size=8, accumulation="split"))
    layout = Layout(steps_per_dispatch=2)
    result = train(PLAN, tmp_path, layout=layout)
    changes = {d["setting"]: d["to"] for d in result.summary["decisions"]}
    assert changes == {"accumulation": "fused", "steps_per_dispatch": 2}


def test_micro_batches_that_cut_groups_are_refused(tmp_path):
    def normalizing(params, model_state, batch, rng):
        rows = batch["x"].reshape(-1, 4, 5)
        normal = (rows - rows.mean(1, keepdims=True)) / (rows.std(1, keepdims=True) + 0.1)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            apply(params, normal.reshape(-1, 5)), batch["y"]
        )
        return weighted_mean(losses, batch["weight"]), (model_state, {})

    plan = make_plan("24", N, "6ep", "drop")
    options = {"loss_fn": normalizing, "independent_groups": 4}
    undisturbed = train(plan, layout=Layout(microbatch_size=8), **options)
    train(
        plan, tmp_path / "run", layout=Layout(microbatch_size=8),
        on_step=lambda finished, *_: finished == 5, **options,
    )  # fmt: skip
    for size in (12, None):
        run = shutil.copytree(tmp_path / "run", tmp_path / str(size))
        result = train(plan, run, layout=Layout(microbatch_size=size), **options)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            result.state.params, undisturbed.state.params,
        )  # fmt: skip
    with pytest.raises(UsageError, match="^microbatch_size: .* with 8, .*--allow-change"):
        train(plan, tmp_path / "run", layout=Layout(microbatch_size=6), **options)


def test_other_devices_get_micro_batches_of_their_own_where_nothing_is_normalized(tmp_path):
    """Those of one device would leave each of many a share of their rows."""

    def plain_loss(params, model_state, batch, rng):  # which draws nothing from the step's key
        losses = optax.softmax_cross_entropy_with_integer_labels(
            apply(params, batch["x"]), batch["y"]
        )
        return weighted_mean(losses, batch["weight"]), (model_state, {})

    plan, stop = make_plan("60", N, "6ep"), {"on_step": lambda finished, *_: finished == 3}
    options = {"independent_groups": 1, "layout": Layout(steps_per_dispatch=1)}
    options["loss_fn"] = plain_loss
    whole = train(plan, **options)
    train(plan, tmp_path, **options, **stop)
    said = Said()
    operation = Operation(progress=said)
    mesh = data_mesh(jax.devices()[:2])
    result = train(plan, tmp_path, **options, mesh=mesh, operation=operation)
    changes = {d["setting"]: (d["from"], d["to"]) for d in result.summary["decisions"]}
    # 32 rows on each: two devices have the whole batch.
    assert changes.pop("microbatch_size") == (32, None)
    assert changes == {"devices": (1, 2), "batch_shards": (1, 2)}
    assert not any("keeps" in text for text in said.texts)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        result.state.params, whole.state.params,
    )  # fmt: skip


def test_other_devices_keep_the_micro_batches_that_may_be_normalized(tmp_path):
    plan = make_plan("24", N, "3ep")
    layout = Layout(microbatch_size=8, steps_per_dispatch=2)
    train(plan, tmp_path, layout=layout, on_step=lambda finished, *_: finished == 2)
    said = Said()
    mesh = data_mesh(jax.devices()[:4])
    result = train(plan, tmp_path, layout=Layout(), mesh=mesh, operation=Operation(progress=said))
    changes = {d["setting"]: d["to"] for d in result.summary["decisions"]}
    assert "microbatch_size" not in changes and changes["batch_shards"] == 4
    (kept,) = (text for text in said.texts if "keeps" in text)
    assert "keeps micro-batches of 8 on 4 devices, 2 rows on each" in kept
    assert json.loads((tmp_path / "environment.json").read_text())["layout"]["microbatch_size"] == 8
