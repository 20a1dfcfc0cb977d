"""What a run compiles while its first updates are computed: evaluations, the copy, later phases."""

import functools
from collections.abc import Hashable, Mapping

from adabatch_jax.data.abstract_arrays import abstract
from adabatch_jax.runs.state_copies import COPY, lower_copy
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.setup import Setup
from adabatch_jax.training.train_state import TrainState


def evaluation_program(name: str, num_rows: int) -> Hashable:
    """What a program that evaluates on a source is called among the run's programs."""
    return ("evaluation", name, num_rows)


def compile_in_background(
    setup: Setup, evaluators: Mapping[str, Evaluator], state: TrainState, has_room: bool
) -> None:
    """Begins to compile what isn't needed at once; evaluations come before most phases."""
    like, programs = abstract(state), setup.dispatch.programs
    for name, evaluator in evaluators.items():
        for num_rows in evaluator.programs:
            lower = functools.partial(evaluator.lower, like, num_rows)
            programs.add(evaluation_program(name, num_rows), lower)
    shardings = setup.update.state_shardings(state)
    programs.add(COPY, functools.partial(lower_copy, like, shardings, has_room))
    programs.compile_rest()
