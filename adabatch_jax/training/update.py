"""What one update of a model computes, as functions to be traced."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from adabatch_jax.system.errors import UsageError
from adabatch_jax.training import accumulation, parameter_sharding
from adabatch_jax.training.accumulation import Sums
from adabatch_jax.training.gradient_reduction import (
    may_sum_apart,
    sharded_gradient_function,
    sum_up_apart,
)
from adabatch_jax.training.gradients import GradFn, Outputs, gradient_function, metrics_like
from adabatch_jax.training.loss_functions import LossFn, has_sequential_model_state
from adabatch_jax.training.nonfinite import is_finite_update, rolled_back
from adabatch_jax.training.train_state import TrainState

Metrics = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
Constants = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """An update from one batch, on any number of devices and micro-batches.

    `update` is all of it. `begin`, `add` and `finish` are the same update in parts, one
    micro-batch after the other, so that batches of all sizes need the same three programs:

        sums = begin(state, microbatches[0], rng, constants)
        for j, microbatch in enumerate(microbatches):   # arrays (m, ...)
            sums = add(sums, state, microbatch, rng, j, constants)
        state, metrics = finish(state, sums)

    `update_checked` and `finish_checked` also return whether the update's loss and gradients are
    finite, a bool scalar that is the same on all devices.

    None of these is compiled or donates what it is given, and all leave their results where
    `state_shardings` and `sums_shardings` say.

    Attributes:
      loss_fn: the loss, as it was given.
      tx: the optimizer.
      mesh: the devices that each (micro-)batch is spread over, or None.
      microbatch_size: real examples in a micro-batch over all devices, or None.
      shard_params: whether parameters and optimizer state are spread over the devices.
      skip_nonfinite: whether an update that isn't finite leaves the weights as they were.
    """

    loss_fn: LossFn
    tx: optax.GradientTransformation
    mesh: Mesh | None
    microbatch_size: int | None
    shard_params: bool
    skip_nonfinite: bool

    def update(
        self, state: TrainState, batch: Batch, rng: jax.Array, constants: Constants
    ) -> tuple[TrainState, Metrics]:
        """Performs one update: what is traced.

        Args:
          state: the state before.
          batch: arrays (B, ...), or (K, m, ...) with micro-batches.
          rng: the run's key.
          constants: the arrays that `loss_fn` holds, as arguments of the program around.
        """
        return self.update_checked(state, batch, rng, constants)[:2]

    def update_checked(
        self, state: TrainState, batch: Batch, rng: jax.Array, constants: Constants
    ) -> tuple[TrainState, Metrics, jax.Array]:
        """What `update` does and returns, and whether loss and gradients are finite."""
        self.check_batch(batch)
        return self._apply(state, self._outputs(state, dict(batch), rng, constants))

    def begin(
        self, state: TrainState, microbatch: Batch, rng: jax.Array, constants: Constants
    ) -> Sums:
        """Returns the sums (`accumulation.Sums`) before an update's first micro-batch.

        Args:
          state: the state before the update.
          microbatch: any of its micro-batches, (m, ...); only shapes and dtypes matter, as also
            of `rng` and `constants`: they tell what the metrics look like.
        """
        loss_fn = self._loss_fn(constants)
        metrics = metrics_like(loss_fn, state.params, state.model_state, microbatch, rng)
        sums = accumulation.begin(state.params, state.model_state, metrics, self._is_sequential)
        return self._laid_out(sums)

    def add(
        self,
        sums: Sums,
        state: TrainState,
        microbatch: Batch,
        rng: jax.Array,
        j: jax.Array,
        constants: Constants,
    ) -> Sums:
        """Returns the sums with one more micro-batch.

        Args:
          sums: from `begin` or `add`.
          state: the state before the update.
          microbatch: arrays (m, ...).
          rng: the run's key.
          j: the micro-batch's number in the update, int32.
          constants: as in `update`.
        """
        self.check_batch(jax.tree.map(lambda leaf: leaf[None], dict(microbatch)))
        grad_fn = self._grad_fn(state, constants)
        before = sums.model_state if self._is_sequential else state.model_state
        rng = jax.random.fold_in(jax.random.fold_in(rng, state.step), j)
        outputs, weight = grad_fn(before, microbatch, rng), microbatch["weight"].sum()
        sums = accumulation.add(sums, outputs, weight, weight > 0, self._is_sequential)
        return self._laid_out(sums)

    def finish(self, state: TrainState, sums: Sums) -> tuple[TrainState, Metrics]:
        """Performs the update of all micro-batches that were added."""
        return self.finish_checked(state, sums)[:2]

    def finish_checked(
        self, state: TrainState, sums: Sums
    ) -> tuple[TrainState, Metrics, jax.Array]:
        """What `finish` does and returns, and whether loss and gradients are finite."""
        before = state.params, state.model_state
        return self._apply(state, accumulation.finish(sums, *before, self._is_sequential))

    def state_shardings(self, state: TrainState) -> Any:
        """Returns a `NamedSharding` for each leaf of a state; None without a mesh."""
        return self.mesh and parameter_sharding.state_shardings(state, self.mesh, self.shard_params)

    def sums_shardings(self, sums: Sums) -> Any:
        """Returns a `NamedSharding` for each leaf of what `begin` returns; None without a mesh."""
        return self.mesh and parameter_sharding.sums_shardings(sums, self.mesh, self.shard_params)

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raises a UsageError unless the batch has the layout that this step was made for."""
        check_batch(batch, self.microbatch_size, 1 if self.mesh is None else self.mesh.size)

    @property
    def _is_sequential(self) -> bool:
        return has_sequential_model_state(self.loss_fn)

    def _loss_fn(self, constants: Constants) -> LossFn:
        """The loss with these constants, as a pytree; it has lost its marks."""
        return jax.tree.unflatten(jax.tree.structure(as_pytree(self.loss_fn)), constants)

    def _grad_fn(self, state: TrainState, constants: Constants) -> GradFn:
        loss_fn = self._loss_fn(constants)
        if self.shard_params:
            return sharded_gradient_function(loss_fn, state.params, self.mesh)
        return gradient_function(loss_fn, state.params)

    def _outputs(
        self, state: TrainState, batch: Batch, rng: jax.Array, constants: Constants
    ) -> Outputs:
        """The gradients of the whole batch, and what comes with them."""
        rng = jax.random.fold_in(rng, state.step)
        if self.microbatch_size is None or batch["weight"].shape[0] == 1:
            if self.microbatch_size is not None:
                batch = jax.tree.map(lambda leaf: leaf[0], batch)
            grad_fn = self._grad_fn(state, constants)
            return grad_fn(state.model_state, batch, jax.random.fold_in(rng, 0))
        before = state.params, state.model_state
        arguments = (*before, batch, rng, self._is_sequential)
        rows = batch["weight"].shape[1]
        if self.mesh is not None and may_sum_apart(
            self.loss_fn, state.model_state, rows // self.mesh.size
        ):
            loss_fn = self._loss_fn(constants)
            sums = sum_up_apart(loss_fn, *arguments, self.mesh, self.shard_params)
        else:
            sums = accumulation.sum_up(self._grad_fn(state, constants), *arguments)
        return accumulation.finish(self._laid_out(sums), *before, self._is_sequential)

    def _apply(self, state: TrainState, outputs: Outputs) -> tuple[TrainState, Metrics, jax.Array]:
        """The optimizer's part of an update."""
        updates, opt_state = self.tx.update(outputs.grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, outputs.model_state, opt_state)
        is_finite = is_finite_update(
            outputs.metrics["loss"], outputs.grads, self.mesh if self.shard_params else None
        )
        if self.skip_nonfinite:
            new = jax.tree.map(
                functools.partial(jnp.where, is_finite), new, rolled_back(state, new)
            )
        return self._laid_out(new), outputs.metrics, is_finite

    def _laid_out(self, tree: TrainState | Sums) -> Any:
        """The same values, and the compiler is told where to leave them."""
        if self.mesh is None:
            return tree
        shardings = self.state_shardings if isinstance(tree, TrainState) else self.sums_shardings
        return lax.with_sharding_constraint(tree, shardings(tree))


def as_pytree(loss_fn: LossFn) -> jax.tree_util.Partial:
    """The loss as a pytree, whose leaves are the arrays that it binds."""
    is_partial = isinstance(loss_fn, jax.tree_util.Partial)
    return loss_fn if is_partial else jax.tree_util.Partial(loss_fn)


def check_batch(batch: Mapping[str, Any], microbatch_size: int | None, num_devices: int) -> None:
    """Raises a UsageError unless the arrays of a batch have the layout that a step expects.

    Args:
      batch: arrays, tracers or `jax.ShapeDtypeStruct`s: (B, ...), or (K, m, ...) where
        `microbatch_size` isn't None.
      microbatch_size: real examples in a micro-batch over all devices.
      num_devices: how many devices the rows are spread over.

    >>> import numpy as np
    >>> check_batch({"weight": np.ones((3, 4))}, microbatch_size=4, num_devices=2)
    """
    if "weight" not in batch:
        raise UsageError(
            "a batch needs a 'weight' (float32, 1 for a real example and 0 for padding), "
            f"got {sorted(batch)}."
        )
    shape = batch["weight"].shape
    layout = "(B,)" if microbatch_size is None else "(K, m)"
    if len(shape) != (1 if microbatch_size is None else 2):
        raise UsageError(
            f"with microbatch_size={microbatch_size} a batch's 'weight' has the shape {layout}, "
            f"got {shape}."
        )
    for path, leaf in jax.tree.leaves_with_path(dict(batch)):
        if leaf.shape[: len(shape)] != shape:
            raise UsageError(
                f"every array of a batch begins with the axes of 'weight', {shape}, but "
                f"batch{jax.tree_util.keystr(path)} has the shape {leaf.shape}."
            )
    if shape[-1] % num_devices:
        raise UsageError(
            f"each (micro-)batch must be padded to a multiple of the {num_devices} devices, "
            f"got {shape[-1]} rows."
        )
    if microbatch_size is not None and shape[-1] >= microbatch_size + num_devices:
        raise UsageError(
            f"a micro-batch has at most microbatch_size={microbatch_size} examples (and padding "
            f"to a multiple of the {num_devices} devices), got {shape[-1]} rows."
        )
