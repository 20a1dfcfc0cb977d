"""Whether a function of a batch sees rows that are padding: it is tried before it counts.

Three forward passes of one program on the same examples, half of which weigh 0: with the first
example repeated in their place, with these examples themselves, and with all weights doubled. A
function that takes nothing but means weighted by `batch["weight"]` gives the same three times; what
it counts may double.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adabatch_jax.data.feeds import Feed, Inputs, Piece
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.compiled_programs import program_of
from adabatch_jax.training.loss_functions import LossFn
from adabatch_jax.training.traced_dispatches import gathered, update_at
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.update import Batch, Update

_REPEATED, _OTHERS, _DOUBLED = range(3)
# Rows that weigh nothing add zeros, and a factor of two rounds nothing: more than a few roundings
# of the type that a number has are a difference.
_LEAST_TOLERANCE, _ROUNDINGS = 3e-5, 8
_MASK = (
    'give what is computed over a batch mask=batch["weight"], a mean as weighted_mean(values, '
    'batch["weight"])'
)


def check_padding(
    loss_fn: LossFn, state: TrainState, batch: Mapping[str, Any], rng: jax.Array
) -> None:
    """Tries whether a loss function sees rows of weight 0, as `fit` does where it needs them.

    Batches are padded with such rows where the devices don't divide them, and where a last
    micro-batch isn't full. A loss that normalizes over all rows of a batch, or divides by their
    number, comes out wrong there without a word. It costs three forward passes, and their
    compilation.

    Args:
      loss_fn: as in `make_train_step`.
      state: as for a train step; it is left as it is.
      batch: arrays (B, ...), or (K, m, ...), of which the first micro-batch is taken; at least two
        of its examples weigh something.
      rng: as for a train step.

    Raises:
      UsageError: the loss, a metric or model state changes with what is in rows of weight 0, or
        where all weights are doubled; or the batch has fewer than two examples.

    >>> import optax
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
    arguments = state.params, state.model_state, batch, rng
    program = jax.jit(lambda variant, *rest: _outputs(loss_fn, variant, *rest))
    change = noticed(lambda variant: program(variant, *arguments))
    if change is not None:
        raise UsageError(f"loss_fn sees padding: {change}; {_MASK}, or pad no batch.")


def check_evaluation(
    eval_fn: Callable[[Any, Any, Batch], Mapping[str, jax.Array]],
    params: Any,
    model_state: Any,
    batch: Batch,
) -> None:
    """Raises a UsageError if an evaluation's function sees rows of weight 0, tried on a batch.

    Calls with the same function and shapes don't compile again.
    """
    change = noticed(lambda variant: _metrics(eval_fn, variant, params, model_state, batch))
    if change is not None:
        raise UsageError(
            f"eval_fn sees padding: {change}; {_MASK}, or evaluate as many examples as the devices "
            "divide."
        )


@functools.partial(jax.jit, static_argnums=0)
def _metrics(eval_fn: Any, variant: Any, params: Any, model_state: Any, batch: Batch) -> Any:
    return {"metrics": eval_fn(params, model_state, varied(batch, variant))}


class PaddingTrial:
    """Tries a run's loss with its first examples; `padding_trial` makes it where that is needed."""

    def __init__(self, update: Update, feed: Feed, rng: jax.Array, is_split: bool, way_out: str):
        self._update, self._feed, self._rng = update, feed, rng
        self._has_microbatches = update.microbatch_size is not None and not is_split
        self._is_split, self._way_out, self._was_tried = is_split, way_out, False

    def __call__(self, state: TrainState, piece: Piece, inputs: Inputs) -> bool:
        """Tries the loss with a piece's first micro-batch; returns whether that tells all.

        With a single example nothing is mixed, and its repetitions have its mean.

        Raises:
          UsageError: the loss sees padding.
        """
        is_enough = self._feed.layouts.of(piece.steps[0].num_real).microbatch_size > 1
        if self._was_tried and not is_enough:
            return False
        self._was_tried = True
        update, shardings = self._update, {}
        if update.mesh is not None:
            shardings["out_shardings"] = update.mesh.whole

        def outputs(variant, state, arrays, number, rng, tables, constants):
            batch = gathered(update, update_at(arrays, number), tables, self._is_split)
            if self._has_microbatches:
                batch = jax.tree.map(lambda leaf: leaf[0], batch)
            rng = jax.random.fold_in(jax.random.fold_in(rng, state.step), 0)
            loss_fn = update.loss_of(constants)
            with update.in_mesh():
                return _outputs(loss_fn, variant, state.params, state.model_state, batch, rng)

        feed = self._feed
        arguments = state, inputs.arrays, inputs.first, self._rng, feed.tables, update.constants
        variants = [update.place(jax.device_put(np.int32(v))) for v in range(3)]
        program = program_of(jax.jit(outputs, **shardings).lower(variants[0], *arguments)).compiled
        change = noticed(lambda variant: program(variants[variant], *arguments))
        if change is not None:
            raise UsageError(f"loss_fn sees padding: {change}; {_MASK}, or {self._way_out}.")
        return is_enough


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


def noticed(program: Callable[[int], Any]) -> str | None:
    """What changes between the variants of `varied` that a program computes; None if nothing does."""
    repeated, others, doubled = (jax.device_get(program(variant)) for variant in range(3))
    change = _difference(repeated, others)
    if change is not None:
        return f"with other examples in rows of weight 0 {change}"
    # Whole numbers are counts, of what the examples weigh perhaps, and no means.
    change = _difference(*(jax.tree.map(_unless_whole, tree) for tree in (repeated, doubled)))
    return None if change is None else f"with all weights doubled {change}"


def varied(batch: Batch, variant: jax.Array) -> Batch:
    """The batch of which half the examples weigh 0, in one of three variants."""
    rest = dict(batch)
    weight = rest.pop("weight")
    number = jnp.cumsum(weight > 0)
    is_kept = (weight > 0) & (number <= (number[-1] + 1) // 2)
    is_filled, first = ~is_kept & (variant != _OTHERS), jnp.argmax(is_kept)

    def fill(leaf):
        column = is_filled.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(column, leaf[first][None], leaf)

    rest = jax.tree.map(lambda leaf: fill(jnp.asarray(leaf)), rest)
    factor = jnp.where(variant == _DOUBLED, 2, 1).astype(weight.dtype)
    return {**rest, "weight": jnp.where(is_kept, weight * factor, 0)}


def _outputs(
    loss_fn: LossFn, variant: jax.Array, params: Any, model_state: Any, batch: Batch, rng: Any
) -> Any:
    loss, (new_state, metrics) = loss_fn(params, model_state, varied(batch, variant), rng)
    return _plain({"loss": loss, "metrics": metrics, "model_state": new_state})


def _plain(outputs: Any) -> Any:
    """Outputs as arrays of numbers, random keys too."""

    def numbers(leaf):
        leaf = jnp.asarray(leaf)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(numbers, outputs)


def _unless_whole(array: np.ndarray) -> np.ndarray:
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else np.zeros_like(array)


def _difference(before: Any, after: Any) -> str | None:
    """The first of the outputs that isn't the same, and how it changes."""
    others = jax.tree.leaves(after)
    for (path, one), other in zip(jax.tree.leaves_with_path(before), others, strict=True):
        one, other = np.atleast_1d(one), np.atleast_1d(other)
        tolerance = 0.0
        if jnp.issubdtype(one.dtype, jnp.inexact):
            tolerance = max(_LEAST_TOLERANCE, _ROUNDINGS * float(jnp.finfo(one.dtype).eps))
        one, other = (x.astype(np.result_type(x.dtype, np.float64)) for x in (one, other))
        with np.errstate(invalid="ignore"):
            gap = np.abs(one - other)
            scale = np.abs(one[np.isfinite(one)]).max(initial=0)
            is_same = (gap <= tolerance * scale) | (one == other)
        is_same |= np.isnan(one) & np.isnan(other)
        if not is_same.all():
            at = np.where(is_same, -1, np.where(np.isnan(gap), np.inf, gap)).argmax()
            return f"{_name(path)} changes from {one.flat[at]:.6g} to {other.flat[at]:.6g}"
    return None


def _name(path: tuple[Any, ...]) -> str:
    kind, rest = path[0].key, path[1:]
    if kind == "model_state":
        return kind + jax.tree_util.keystr(rest)
    return f"the {kind}" if kind == "loss" else f"the metric {jax.tree_util.keystr(rest)}"


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
