"""Pieces of a plan against cutting its updates one by one."""

import pytest

from adabatch_jax import make_plan
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.training.updates_per_dispatch import microbatch_pieces, pieces

PLAN = make_plan("3, 20sp: 5, 41sp: 2", num_examples=23, duration="3ep", remainder="partial")


def next_due(finished):
    return finished - finished % 7 + 7


def one_by_one(steps_per_dispatch):
    """Where the uninterrupted run ends its pieces."""
    steps = list(PLAN.steps())
    ends = {b.index for a, b in zip(steps, steps[1:]) if a.num_real != b.num_real}
    for phase in PLAN.phases:
        for finished in range(phase.start_step + 1, phase.stop_step + 1):
            since = finished - phase.start_step
            if since % steps_per_dispatch == 0 or finished == phase.stop_step or finished % 7 == 0:
                ends.add(finished)
    return sorted(ends)


@pytest.mark.parametrize("steps_per_dispatch", [1, 2, 4, 100])
def test_a_resumed_run_makes_the_pieces_of_the_uninterrupted_one(steps_per_dispatch):
    ends = one_by_one(steps_per_dispatch)
    for start in range(PLAN.num_steps):
        made = list(pieces(PLAN, start, steps_per_dispatch, next_due))
        assert [piece.steps[-1].index + 1 for piece in made] == [end for end in ends if end > start]
        steps = [step for piece in made for step in piece.steps]
        assert steps == list(PLAN.steps(start))
        for piece in made:
            assert len({(step.phase, step.num_real) for step in piece.steps}) == 1
            assert len(piece.steps) <= steps_per_dispatch


def test_microbatches_of_an_update_follow_each_other():
    made = [(p.steps[0].index, p.microbatch) for p in microbatch_pieces(PLAN, 5, Layouts(2))]
    wanted = [
        (step.index, number) for step in PLAN.steps(5) for number in range(-(-step.num_real // 2))
    ]
    assert made == wanted
