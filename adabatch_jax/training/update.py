"""What one update of a model computes, as functions to be traced."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding

from adabatch_jax.data.mesh import BatchMesh, as_batch_mesh
from adabatch_jax.system.errors import UsageError, check_call
from adabatch_jax.training import accumulation
from adabatch_jax.training.accumulation import Sums
from adabatch_jax.training.finite_checks import is_finite_update, rolled_back
from adabatch_jax.training.gradient_reduction import (
    sharded_gradient_function,
    sum_up_on_each_device,
)
from adabatch_jax.training.gradients import GradFn, Outputs, gradient_function, metrics_like
from adabatch_jax.training.loss_functions import LossFn
from adabatch_jax.training.optimizers import updates_of
from adabatch_jax.training.parameter_sharding import is_sharded, shardings_of, state_specs
from adabatch_jax.training.train_state import TrainState, on_devices

Metrics = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
Constants = tuple[jax.Array, ...]
Updated = tuple[TrainState, Metrics, jax.Array, jax.Array]


def _on_its_mesh(method: Callable[..., Any]) -> Callable[..., Any]:
    """An update's method, traced where a `PartitionSpec` alone means the update's mesh.

    So it is in threads that compile too: they don't know the caller's `jax.set_mesh`.
    """

    @functools.wraps(method)
    def traced(self: "Update", *arguments: Any) -> Any:
        with self.in_mesh():
            return method(self, *arguments)

    return traced


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """An update from one batch, on any number of devices and micro-batches.

    A call is all of it. `begin`, `add` and `finish` are the same update in parts, one
    micro-batch after the other, so that batches of all sizes need the same three programs:

        sums = begin(state, microbatches[0], rng, constants)
        for j, microbatch in enumerate(microbatches):   # arrays (m, ...)
            sums = add(sums, state, microbatch, rng, j, constants)
        state, metrics, is_finite, weight = finish(state, sums)

    None of these is compiled or donates what it is given, and all leave their results where
    `state_shardings` and `sums_shardings` say.

    Attributes:
      mesh: becomes a `BatchMesh`.
      specs: the `PartitionSpec` of each leaf of the state, see `keeping`; None: as for a state that
        comes with no sharding of its own.
      may_weigh_nothing: all weights of a batch may be 0, as of examples with weights of their own:
        then nothing is learnt from it, in one piece too, even where the loss divides by them.
      constants: the arrays that `loss_fn` holds, where the devices want them; they are arguments
        of the program around.
      (the others): as in `make_train_step`, which says what is refused.
    """

    loss_fn: LossFn
    tx: optax.GradientTransformation
    mesh: Mesh | NamedSharding | BatchMesh | None = None
    microbatch_size: int | None = None
    sequential_model_state: bool = False
    independent_groups: int | None = None
    shard_params: bool = False
    skip_nonfinite: bool = False
    specs: TrainState | None = None
    may_weigh_nothing: bool = False
    constants: Constants = dataclasses.field(init=False)

    def __post_init__(self):
        check_call("loss_fn", self.loss_fn, "params", "model_state", "batch", "rng")
        for name in ("microbatch_size", "independent_groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}.")
        if self.shard_params and self.mesh is None:
            raise UsageError("shard_params=True needs the mesh to spread the parameters over.")
        mesh = as_batch_mesh(self.mesh)
        object.__setattr__(self, "mesh", mesh)
        # Once here, or every call would copy them to the devices.
        constants = tuple(jax.tree.leaves(_as_pytree(self.loss_fn)))
        put = jax.device_put if mesh is None else mesh.put_whole
        object.__setattr__(self, "constants", put(constants))

    def in_mesh(self) -> contextlib.AbstractContextManager[None]:
        """Where the loss is traced: a `PartitionSpec` alone means this mesh."""
        if self.mesh is None:
            return contextlib.nullcontext()
        return jax.sharding.use_abstract_mesh(self.mesh.mesh.abstract_mesh)

    def keeping(self, state: TrainState) -> "Update":
        """The same update for states that are sharded as this one is (arrays or abstract ones).

        Raises a UsageError where one of its leaves is sharded as this mesh can't hold it.
        """
        if self.mesh is None:
            return self
        return dataclasses.replace(self, specs=self._specs_of(state))

    @_on_its_mesh
    def __call__(
        self, state: TrainState, batch: Batch, rng: jax.Array, constants: Constants
    ) -> Updated:
        """Performs one update from arrays (B, ...), or (K, m, ...) with micro-batches.

        Returns:
          The state after it, the metrics, whether loss and gradients are finite, a bool scalar,
          and the batch's sum of weights; the last two are the same on all devices.
        """
        self.check_batch(batch)
        outputs = self._outputs(state, dict(batch), rng, constants)
        return self._apply(state, outputs, batch["weight"].sum())

    @_on_its_mesh
    def begin(
        self, state: TrainState, microbatch: Batch, rng: jax.Array, constants: Constants
    ) -> Sums:
        """The sums before the first micro-batch; of any micro-batch (m, ...), the shapes matter."""
        loss_fn = self.loss_of(constants)
        metrics = metrics_like(loss_fn, state.params, state.model_state, microbatch, rng)
        sums = accumulation.begin(
            state.params, state.model_state, metrics, self.sequential_model_state
        )
        return self._laid_out(sums)

    @_on_its_mesh
    def add(
        self,
        sums: Sums,
        state: TrainState,
        microbatch: Batch,
        rng: jax.Array,
        j: jax.Array,
        constants: Constants,
    ) -> Sums:
        """The sums with micro-batch number `j`, arrays (m, ...); `state` is as before the update."""
        self.check_batch(jax.tree.map(lambda leaf: leaf[None], dict(microbatch)))
        grad_fn = self._grad_fn(state, constants)
        before = sums.model_state if self.sequential_model_state else state.model_state
        rng = jax.random.fold_in(jax.random.fold_in(rng, state.step), j)
        outputs, weight = grad_fn(before, microbatch, rng), microbatch["weight"].sum()
        sums = accumulation.add(sums, outputs, weight, weight > 0, self.sequential_model_state)
        return self._laid_out(sums)

    @_on_its_mesh
    def finish(self, state: TrainState, sums: Sums) -> Updated:
        """Performs the update of what was added; returns what a call does."""
        before = state.params, state.model_state
        outputs = accumulation.finish(sums, *before, self.sequential_model_state)
        return self._apply(state, outputs, sums.weight)

    def place(self, tree: Any) -> Any:
        """A state where this update wants it; anything else whole on every device."""
        if isinstance(tree, TrainState):
            tree = on_devices(tree)
        if self.mesh is None:
            return tree
        if isinstance(tree, TrainState):
            return self.mesh.put_as(tree, self.state_shardings(tree))
        return self.mesh.put_whole(tree)

    def state_shardings(self, state: TrainState) -> Any:
        """A `NamedSharding` for each leaf of a state; None without a mesh."""
        return self.mesh and shardings_of(self._specs_of(state), self.mesh)

    def sums_shardings(self, sums: Sums) -> Any:
        """A `NamedSharding` for each leaf of what `begin` returns; None without a mesh.

        Gradients and model state lie as the state's do, all else is whole.
        """
        if self.mesh is None:
            return None
        like = TrainState(sums.weight, sums.grads, sums.model_state, opt_state=())
        specs = self._specs_of(like)
        return Sums(
            grads=shardings_of(specs.params, self.mesh),
            model_state=shardings_of(specs.model_state, self.mesh),
            metrics=jax.tree.map(lambda _: self.mesh.whole, sums.metrics),
            weight=self.mesh.whole,
        )

    def _specs_of(self, state: TrainState) -> TrainState:
        return self.specs or state_specs(state, self.mesh, self.shard_params)

    def batch_shardings(self, batch: Batch) -> Any:
        """The `NamedSharding` of a batch's arrays, or of each of them; only with a mesh."""
        return self.mesh.of_batch(batch, int(self.microbatch_size is not None))

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raises a UsageError unless the batch has the layout that this update was made for."""
        size, num_devices = self.microbatch_size, 1 if self.mesh is None else self.mesh.num_shards
        if "weight" not in batch:
            raise UsageError(
                "a batch needs a 'weight' (float32, 1 for a real example and 0 for padding), "
                f"got {sorted(batch)}."
            )
        shape, layout = batch["weight"].shape, "(B,)" if size is None else "(K, m)"
        if len(shape) != (1 if size is None else 2):
            raise UsageError(
                f"with microbatch_size={size} a batch's 'weight' has the shape {layout}, got "
                f"{shape}."
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
        if size is not None and shape[-1] >= size + num_devices:
            raise UsageError(
                f"a micro-batch has at most microbatch_size={size} examples (and padding to a "
                f"multiple of the {num_devices} devices), got {shape[-1]} rows."
            )

    def loss_of(self, constants: Constants) -> LossFn:
        """The loss with these constants, as a pytree."""
        return jax.tree.unflatten(jax.tree.structure(_as_pytree(self.loss_fn)), constants)

    def _grad_fn(self, state: TrainState, constants: Constants) -> GradFn:
        loss_fn = self.loss_of(constants)
        if self.mesh is not None and is_sharded(specs := self._specs_of(state).params):
            return sharded_gradient_function(loss_fn, state.params, specs, self.mesh)
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
            outputs = grad_fn(state.model_state, batch, jax.random.fold_in(rng, 0))
            if not self.may_weigh_nothing:
                return outputs
            weight = batch["weight"].sum()
            return accumulation.left_out_if_empty(outputs, weight, state.model_state)
        before = state.params, state.model_state
        arguments = (*before, batch, rng, self.sequential_model_state)
        if self._devices_may_sum_up(state.model_state, batch["weight"].shape[1]):
            loss_fn, specs = self.loss_of(constants), self._specs_of(state).params
            sums = sum_up_on_each_device(loss_fn, *arguments, specs, self.mesh)
        else:
            sums = accumulation.sum_up(self._grad_fn(state, constants), *arguments)
        return accumulation.finish(self._laid_out(sums), *before, self.sequential_model_state)

    def _devices_may_sum_up(self, model_state: Any, num_rows: int) -> bool:
        """Whether no group of rows of a micro-batch spans two devices of one data axis."""
        if self.mesh is None or self.independent_groups is None:
            return False
        if len(self.mesh.data_axes) != 1:  # `rows_of_all_devices` would have to know them
            return False
        # Other model state is the last micro-batch's: each device has another one.
        floats = (jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(model_state))
        return num_rows // self.mesh.num_shards % self.independent_groups == 0 and (
            self.sequential_model_state or all(floats)
        )

    def _apply(self, state: TrainState, outputs: Outputs, weight: jax.Array) -> Updated:
        """The optimizer's part of an update."""
        loss = outputs.metrics["loss"]
        updates, opt_state = updates_of(self.tx, outputs.grads, state.opt_state, state.params, loss)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, outputs.model_state, opt_state)
        specs = None if self.mesh is None else self._specs_of(state).params
        is_finite = is_finite_update(loss, outputs.grads, specs, self.mesh)
        if self.skip_nonfinite:
            new = jax.tree.map(
                functools.partial(jnp.where, is_finite), new, rolled_back(state, new)
            )
        return self._laid_out(new), outputs.metrics, is_finite, weight

    def _laid_out(self, tree: TrainState | Sums) -> Any:
        """The same values, and the compiler is told where to leave them."""
        if self.mesh is None:
            return tree
        lies = self.state_shardings if isinstance(tree, TrainState) else self.sums_shardings
        return lax.with_sharding_constraint(tree, lies(tree))


def _as_pytree(loss_fn: LossFn) -> jax.tree_util.Partial:
    """The loss as a pytree, whose leaves are the arrays that it binds."""
    is_partial = isinstance(loss_fn, jax.tree_util.Partial)
    return loss_fn if is_partial else jax.tree_util.Partial(loss_fn)
