"""Which consecutive updates are dispatched together."""

from collections.abc import Callable, Iterator

from adabatch_jax.data.feeds import Piece
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.schedules.plan import BatchPlan, Step


def pieces(
    plan: BatchPlan,
    start_step: int,
    steps_per_dispatch: int,
    next_boundary: Callable[[int], int],
) -> Iterator[Piece]:
    """Yields the plan's updates from one on, several to a piece.

    A piece ends where its phase does, before and behind a partial batch, where something is due,
    and at each multiple of `steps_per_dispatch` counted from its phase's start. These places don't
    depend on `start_step`, so a resumed run makes the same pieces as an uninterrupted one.

    `next_boundary` tells the first number of finished updates, above a given one, where something
    is due.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("2, 14sp: 4", num_examples=30, duration="1ep")
    >>> made = pieces(plan, 1, 4, next_boundary=lambda finished: 9 if finished < 9 else 99)
    >>> [[step.index for step in piece.steps] for piece in made]
    [[1, 2, 3], [4, 5, 6], [7, 8], [9, 10]]
    >>> plan = make_plan("4", num_examples=10, duration="2ep", remainder="partial")
    >>> made = pieces(plan, 0, 4, next_boundary=lambda finished: 99)
    >>> [[step.index for step in piece.steps] for piece in made]
    [[0, 1], [2], [3], [4], [5]]
    """
    steps: list[Step] = []
    boundary = next_boundary(start_step)
    for step in plan.steps(start_step):
        if steps and step.num_real != steps[0].num_real:
            yield Piece(tuple(steps))
            steps = []
        steps.append(step)
        finished, phase = step.index + 1, plan.phases[step.phase]
        if (
            finished == phase.stop_step
            or (finished - phase.start_step) % steps_per_dispatch == 0
            or finished == boundary
        ):
            yield Piece(tuple(steps))
            steps = []
            if finished == boundary:
                boundary = next_boundary(finished)


def microbatch_pieces(plan: BatchPlan, start_step: int, layouts: Layouts) -> Iterator[Piece]:
    """Yields the plan's updates from one on, one micro-batch to a piece.

    >>> from adabatch_jax import make_plan
    >>> made = microbatch_pieces(make_plan("4, 4sp: 6", 10, "1ep"), 0, Layouts(4))
    >>> [(piece.steps[0].index, piece.microbatch) for piece in made]
    [(0, 0), (1, 0), (1, 1)]
    """
    for step in plan.steps(start_step):
        for microbatch in range(layouts.of(step.num_real).num_microbatches):
            yield Piece((step,), microbatch)
