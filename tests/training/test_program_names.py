"""`plan` and the run count the same programs, for whatever schedule, devices and micro-batch."""

import random

import jax
import numpy as np
import optax
import pytest

from adabatch_jax import TrainState, array_source, data_mesh, make_plan
from adabatch_jax.config import TrainConfig
from adabatch_jax.data.feeds import Feed
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.reporting.planning.plan_table import plan_notes
from adabatch_jax.training.dispatch import FusedDispatch, SplitDispatch
from adabatch_jax.training.update import Update
from tests.training.small_problem import linear_loss, linear_state

NUM_EXAMPLES = 200


def loss_fn(*arguments):
    loss, (model_state, _) = linear_loss(*arguments)
    return loss, (model_state, {})


def random_layouts(number):
    draw = random.Random(0)
    for _ in range(number):
        sizes = [draw.randint(1, 40) for _ in range(draw.randint(1, 6))]
        later = [f"{20 * i}sp: {size}" for i, size in enumerate(sizes[1:], start=1)]
        schedule = ", ".join([str(sizes[0]), *later])
        num_devices = draw.choice([1, 2, 3, 8])
        microbatch_size = draw.choice([None, 4, 7, 16, 64])
        kind = draw.choice(["fused", "several", "split" if microbatch_size else "fused"])
        remainder = draw.choice(["carry", "partial", "drop"])
        yield schedule, num_devices, microbatch_size, kind, remainder


def opened(plan, num_devices, microbatch_size, kind):
    """The dispatch of a run, and its feed."""
    mesh = None if num_devices == 1 else data_mesh(jax.devices()[:num_devices])
    update = Update(loss_fn, optax.sgd(1.0), mesh, microbatch_size)
    source = array_source({"x": np.ones((NUM_EXAMPLES, 2), np.float32)})
    number = 4 if kind == "several" else 1
    feed = Feed(
        source, plan, 0, mesh=mesh, microbatch_size=microbatch_size, steps_per_dispatch=number,
        split=kind == "split",
    )  # fmt: skip
    state, rng = update.place(linear_state()), update.place(jax.random.key(0))
    arguments = update, feed, plan, 0, state, rng
    dispatch = (
        SplitDispatch(*arguments)
        if kind == "split"
        else FusedDispatch(*arguments, steps_per_dispatch=number)
    )
    return dispatch, feed, state, rng


@pytest.mark.parametrize("case", list(random_layouts(60)))
def test_plan_counts_the_programs_of_the_run(case):
    schedule, num_devices, microbatch_size, kind, remainder = case
    accumulation = "split" if kind == "split" else "fused"
    config = TrainConfig(
        batch_schedule=schedule, microbatch_size=microbatch_size, accumulation=accumulation
    )
    plan = make_plan(schedule, NUM_EXAMPLES, "2.4ep", remainder)
    notes = plan_notes(config, plan, Layouts(microbatch_size, num_devices))
    (count,) = (note.split()[0] for note in notes if "to compile" in note)
    dispatch, feed, *_ = opened(plan, num_devices, microbatch_size, kind)
    feed.close()
    assert len(dispatch.programs.names) == int(count)
    needed = {name for step in plan.steps() for name in dispatch.names(step.num_real)}
    assert needed == set(dispatch.programs.names)


@pytest.mark.parametrize("kind", ["fused", "several", "split"])
def test_batches_that_look_alike_share_what_was_compiled_once(kind, compilations):
    """30 rows are padded to 32 on 8 devices, whether in one piece or as the one micro-batch."""
    plan = make_plan("30, 60sp: 32", NUM_EXAMPLES, "188sp")
    dispatch, feed, state, rng = opened(plan, 8, 32, kind)
    assert len(dispatch.programs.names) == (3 if kind == "split" else 1)
    programs = [dispatch.programs.get(name).compiled for name in dispatch.programs.names]
    with feed:
        before = len(compilations)
        for piece, inputs in feed.run(dispatch.pieces(0, lambda finished: plan.num_steps)):
            state, *_ = dispatch(piece, state, inputs)
        assert len(compilations) == before and programs
    assert isinstance(state, TrainState) and int(state.step) == plan.num_steps
    steps = [step for step in plan.steps()]
    assert {step.batch_size for step in steps} == {30, 32}
    np.testing.assert_allclose(state.params["w"], -np.ones(2) * len(steps), rtol=1e-6)
