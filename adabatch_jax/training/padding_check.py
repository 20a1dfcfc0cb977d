"""Whether a function of a batch sees rows that are padding: it is tried before it counts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from adabatch_jax.data.feeds import Feed, Inputs, Piece
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.compiled_programs import program_of
from adabatch_jax.training.loss_functions import LossFn
from adabatch_jax.training.padding_variants import Variant, outputs_of, tried
from adabatch_jax.training.traced_dispatches import gathered, update_at
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.update import Batch, Update

# So many updates' examples, where a metric has but one value in all draws.
_MOST_UPDATES = 4


def check_padding(
    loss_fn: LossFn, state: TrainState, batch: Mapping[str, Any], rng: jax.Array
) -> None:
    """Tries whether a loss function sees rows of weight 0, as `fit` does where it needs them.

    Batches are padded with such rows where the devices don't divide them, and where a last
    micro-batch isn't full. A loss that normalizes over all rows of a batch, or divides by their
    number, comes out wrong there without a word. It costs 8 to 24 forward passes, most with
    perturbed parameters, and the compilation of one. What is made of the number of rows alone
    isn't seen, as in `model_state["n"] + batch["x"].shape[0]`: take `batch["weight"].sum()`.

    Args:
      loss_fn: as in `make_train_step`.
      state: as for a train step; it is left as it is.
      batch: arrays (B, ...), or (K, m, ...), of which the first micro-batch is taken; at least two
        of its examples weigh something.
      rng: as for a train step.

    Raises:
      UsageError: the loss, a metric or model state changes with what is in rows of weight 0, or
        where all weights are doubled (integers may then); or the batch has fewer than two
        examples, or a loss that isn't finite.

    >>> import jax.numpy as jnp, optax
    >>> from adabatch_jax import weighted_mean
    >>> def loss_fn(params, model_state, batch, rng):
    ...     centred = batch["x"] - batch["x"].mean()
    ...     return weighted_mean(centred**2, batch["weight"]), (model_state, {})
    >>> state = TrainState.create(params={}, tx=optax.sgd(0.1))
    >>> batch = {"x": jnp.arange(4.0), "weight": jnp.ones(4)}
    >>> check_padding(loss_fn, state, batch, jax.random.key(0))
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: loss_fn sees padding: with other examples in rows of ...
    """
    batch = dict(batch)
    if "weight" in batch and np.ndim(batch["weight"]) == 2:
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
    Update(loss_fn, None).check_batch(batch)
    if np.count_nonzero(jax.device_get(batch["weight"])) < 2:
        raise UsageError("a batch of at least two examples is needed to see whether they mix.")
    lies = _shardings(batch)

    @jax.jit
    def program(variant, params, model_state, batch, rng):
        return outputs_of(_named(loss_fn, model_state, rng, lies), variant, params, batch)

    arguments = state.params, state.model_state, batch, rng
    verdict = tried(lambda variant: program(variant, *arguments))
    if verdict.fault is not None:
        raise UsageError(f"loss_fn {verdict.fault}, or pad no batch.")
    if not verdict.is_decided:
        raise UsageError(
            "loss_fn gives no finite loss for this batch, which doesn't tell whether it sees "
            "padding; try it with another one."
        )


def check_evaluation(
    eval_fn: Callable[[Any, Any, Batch], Mapping[str, jax.Array]],
    params: Any,
    model_state: Any,
    batch: Batch,
) -> bool:
    """Raises a UsageError if an evaluation's function sees rows of weight 0, tried on a batch.

    Calls with the same function and shapes don't compile again.

    Returns:
      Whether the batch tells; one with a single example, or without finite metrics, doesn't.
    """
    arguments = _shardings(batch), params, model_state, batch
    verdict = tried(lambda variant: _metrics(eval_fn, *arguments, variant))
    if verdict.fault is not None:
        raise UsageError(
            f"eval_fn {verdict.fault}, or evaluate as many examples as the devices divide."
        )
    return verdict.is_decided


@functools.partial(jax.jit, static_argnums=(0, 1))
def _metrics(
    eval_fn: Any, lies: Any, params: Any, model_state: Any, batch: Batch, variant: Variant
) -> Any:
    def named(params, batch):
        return {"metrics": eval_fn(params, model_state, _laid_out(batch, lies))}

    return outputs_of(named, variant, params, batch)


class PaddingTrial:
    """Tries a run's loss with its first examples; `padding_trial` makes it where that is needed."""

    def __init__(self, update: Update, feed: Feed, rng: jax.Array, is_split: bool, way_out: str):
        self._update, self._feed, self._rng = update, feed, rng
        self._place = update.place
        self._has_microbatches = update.microbatch_size is not None and not is_split
        self._is_split, self._way_out = is_split, way_out
        self._was_tried, self._num_decided = False, 0
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, state: TrainState, piece: Piece, inputs: Inputs) -> bool:
        """Tries the loss with a piece's micro-batches, of each update the first, until one tells.

        With a single example nothing is mixed, and its repetitions have its mean. Where the loss
        isn't finite nothing can be told: what becomes of that is the run's own business.

        Returns:
          Whether nothing more is to be tried.

        Raises:
          UsageError: the loss sees padding.
        """
        is_single = self._feed.layouts.of(piece.steps[0].num_real).microbatch_size == 1
        if self._was_tried and is_single:
            return False
        self._was_tried = True
        program = self._compiled(state, inputs)
        for later in range(1 if is_single else len(piece.steps)):
            arguments = self._arguments(state, inputs, later)
            verdict = tried(lambda variant, rest=arguments: program(self._place(variant), *rest))
            if verdict.fault is not None:
                raise UsageError(f"loss_fn {verdict.fault}, or {self._way_out}.")
            self._num_decided += verdict.is_decided
            if verdict.is_final or self._num_decided == _MOST_UPDATES:
                self._programs.clear()
                return True
        return False

    def _arguments(self, state: TrainState, inputs: Inputs, later: int) -> tuple[Any, ...]:
        number = inputs.first, self._place(np.int32(later))
        tables, constants = self._feed.tables, self._update.constants
        return state, inputs.arrays, number, self._rng, tables, constants

    def _compiled(self, state: TrainState, inputs: Inputs) -> Callable[..., Any]:
        """The program for inputs of these shapes, of which a run has few."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(inputs.arrays))
        if shapes not in self._programs:
            mesh = self._update.mesh
            jitted = jax.jit(
                self._traced, **({} if mesh is None else {"out_shardings": mesh.whole})
            )
            lowered = jitted.lower(self._place(Variant()), *self._arguments(state, inputs, 0))
            self._programs[shapes] = program_of(lowered).compiled
        return self._programs[shapes]

    def _traced(
        self,
        variant: Variant,
        state: TrainState,
        arrays: Any,
        number: tuple[jax.Array, jax.Array],
        rng: jax.Array,
        tables: Any,
        constants: Any,
    ) -> Any:
        update = self._update
        batch = gathered(update, update_at(arrays, number[0] + number[1]), tables, self._is_split)
        if self._has_microbatches:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
        lies = (None,) * len(jax.tree.leaves(batch))
        if update.mesh is not None:
            of_batch = jax.tree.broadcast(update.mesh.of_batch(batch), batch)
            lies = tuple(jax.tree.leaves(of_batch))
        rng = jax.random.fold_in(jax.random.fold_in(rng, state.step), 0)
        with update.in_mesh():
            named = _named(update.loss_of(constants), state.model_state, rng, lies)
            return outputs_of(named, variant, state.params, batch)


def padding_trial(
    update: Update, feed: Feed, plan: BatchPlan, start_step: int, rng: jax.Array, is_split: bool
) -> PaddingTrial | None:
    """What tries a run's loss; None where no update from one on has any padding."""
    for size, step in first_updates_by_size(plan, start_step).items():
        if feed.layouts.of(size).has_padding:
            is_partial = size < plan.batch_size_at(step)
            way_out = _without_padding(feed.layouts, size, step + 1, is_partial)
            return PaddingTrial(update, feed, rng, is_split, way_out)
    return None


def _named(loss_fn: LossFn, model_state: Any, rng: jax.Array, lies: Any) -> Callable[..., Any]:
    """The loss as `outputs_of` takes it."""

    def named(params: Any, batch: Batch) -> dict[str, Any]:
        loss, (state, metrics) = loss_fn(params, model_state, _laid_out(batch, lies), rng)
        return {"loss": loss, "metrics": metrics, "model_state": state}

    return named


def _shardings(batch: Batch) -> tuple[NamedSharding | None, ...]:
    """Where each of a batch's arrays lies on a mesh; None without one."""
    lies = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(batch))
    return tuple(sharding if isinstance(sharding, NamedSharding) else None for sharding in lies)


def _laid_out(batch: Batch, lies: tuple[NamedSharding | None, ...]) -> Batch:
    """The batch, where rows that were picked anew lie as the batch did."""
    leaves, structure = jax.tree.flatten(batch)
    return structure.unflatten(
        leaf if sharding is None else lax.with_sharding_constraint(leaf, sharding)
        for leaf, sharding in zip(leaves, lies, strict=True)
    )


def _without_padding(layouts: Layouts, size: int, update: int, is_partial: bool) -> str:
    """How an update of so many examples would need no padding, in words."""
    devices, microbatch_size = layouts.num_devices, layouts.microbatch_size
    if microbatch_size is not None and size > microbatch_size and microbatch_size % devices:
        below = microbatch_size - microbatch_size % devices
        sizes = [n for n in (below, below + devices) if n]
        return f"let microbatch_size be {_or(sizes)}, which {devices} devices divide"
    reach = size + devices + (microbatch_size or 0)
    near = (
        next((n for n in numbers if not layouts.of(n).has_padding), None)
        for numbers in (range(size - 1, 0, -1), range(size + 1, reach + 1))
    )
    sizes = [n for n in near if n is not None]
    partial = '; it is a partial batch, and remainder="drop" has none' if is_partial else ""
    return f"let update {update} have {_or(sizes)} examples instead of {size}{partial}"


def _or(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
