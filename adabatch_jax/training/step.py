"""One update of a model from one batch, on any number of devices and micro-batches."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax import lax
from jax.sharding import Mesh

from adabatch_jax.errors import UsageError
from adabatch_jax.training import accumulation, sharding
from adabatch_jax.training.accumulation import Sums
from adabatch_jax.training.batch_checks import check_batch
from adabatch_jax.training.gradients import GradFn, Outputs, gradient_function, metrics_like
from adabatch_jax.training.loss_functions import LossFn, has_sequential_model_state
from adabatch_jax.training.mesh import as_data_mesh, batch_sharding, replicated
from adabatch_jax.training.reduction import (
    may_sum_apart,
    sharded_gradient_function,
    sum_up_apart,
)
from adabatch_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
Constants = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """A train step; `make_train_step` makes it. Calling it performs one compiled update.

    `update` is that update as a function to be traced, for programs that do more around it.
    `begin`, `add` and `finish` are the same update in parts, one micro-batch after the other, so
    that batches of all sizes need the same three programs:

        sums = begin(state, microbatches[0], rng, constants)
        for j, microbatch in enumerate(microbatches):   # arrays (m, ...)
            sums = add(sums, state, microbatch, rng, j, constants)
        state, metrics = finish(state, sums)

    None of these is compiled or donates what it is given, and all leave their results where
    `state_shardings` and `sums_shardings` say.

    Attributes:
      loss_fn: the loss, as it was given.
      tx: the optimizer.
      mesh: the devices that each (micro-)batch is spread over, or None.
      microbatch_size: real examples in a micro-batch over all devices, or None.
      shard_params: whether parameters and optimizer state are spread over the devices.
      constants: the arrays that `loss_fn` holds, where the devices want them.
    """

    loss_fn: LossFn
    tx: optax.GradientTransformation
    mesh: Mesh | None
    microbatch_size: int | None
    shard_params: bool
    constants: Constants

    def __call__(
        self, state: TrainState, batch: Mapping[str, Any], rng: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Returns the state after one update, and the batch's metrics.

        Args:
          state: the state before; it is donated, so don't use it again.
          batch: arrays (B, ...), or (K, m, ...) with micro-batches, among them "weight".
          rng: the run's key, the same at every call.

        Raises:
          UsageError: the batch doesn't have the layout that this step was made for.
        """
        if self.mesh is not None and state.step.sharding != replicated(self.mesh):
            state = self.place(state)
        try:
            return self.jitted(state, batch, rng, self.constants)
        except ValueError:
            # jit refuses a batch that the devices don't divide before it traces, where the
            # other checks are. A good batch doesn't pay for finding out why.
            self.check_batch(batch)
            raise

    @functools.cached_property
    def jitted(self) -> Any:
        """`update`, compiled when it is first called; it donates a state that lies on the mesh."""
        shardings = {}
        if self.mesh is not None:
            whole = replicated(self.mesh)
            spread = batch_sharding(self.mesh, self.microbatch_size is not None)
            # What a sharded state looks like is known only when it comes.
            of_state = None if self.shard_params else whole
            shardings = {
                "in_shardings": (of_state, spread, whole, whole),
                "out_shardings": (of_state, whole),
            }
        return jax.jit(self.update, donate_argnums=0, **shardings)

    def lower(self, state: Any, batch: Any, rng: Any) -> jax.stages.Lowered:
        """Lowers the step for arguments of these shapes (arrays or `jax.ShapeDtypeStruct`s)."""
        self.check_batch(batch)
        if self.shard_params:
            state = jax.tree.map(
                lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
                state,
                self.state_shardings(state),
            )
        return self.jitted.lower(state, batch, rng, self.constants)

    def update(
        self, state: TrainState, batch: Batch, rng: jax.Array, constants: Constants
    ) -> tuple[TrainState, Metrics]:
        """Performs one update: what is traced.

        Args:
          state: the state before.
          batch: arrays (B, ...), or (K, m, ...) with micro-batches.
          rng: the run's key.
          constants: the attribute of this name, as arguments of the program around.
        """
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
        before = state.params, state.model_state
        return self._apply(state, accumulation.finish(sums, *before, self._is_sequential))

    def place(self, tree: Any) -> Any:
        """Returns a state where this step wants it; anything else whole on every device."""
        if self.mesh is None:
            return tree
        is_state = isinstance(tree, TrainState)
        return jax.device_put(
            tree, self.state_shardings(tree) if is_state else replicated(self.mesh)
        )

    def state_shardings(self, state: TrainState) -> Any:
        """Returns a `NamedSharding` for each leaf of a state; None without a mesh."""
        return self.mesh and sharding.state_shardings(state, self.mesh, self.shard_params)

    def sums_shardings(self, sums: Sums) -> Any:
        """Returns a `NamedSharding` for each leaf of what `begin` returns; None without a mesh."""
        return self.mesh and sharding.sums_shardings(sums, self.mesh, self.shard_params)

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raises a UsageError unless the batch has the layout that this step was made for."""
        check_batch(batch, self.microbatch_size, 1 if self.mesh is None else self.mesh.size)

    @property
    def _is_sequential(self) -> bool:
        return has_sequential_model_state(self.loss_fn)

    def _loss_fn(self, constants: Constants) -> LossFn:
        """The loss with these constants, as a pytree; it has lost its marks."""
        return jax.tree.unflatten(jax.tree.structure(_as_pytree(self.loss_fn)), constants)

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

    def _apply(self, state: TrainState, outputs: Outputs) -> tuple[TrainState, Metrics]:
        """The optimizer's part of an update."""
        updates, opt_state = self.tx.update(outputs.grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, outputs.model_state, opt_state)
        return self._laid_out(new), outputs.metrics

    def _laid_out(self, tree: TrainState | Sums) -> Any:
        """The same values, and the compiler is told where to leave them."""
        if self.mesh is None:
            return tree
        shardings = self.state_shardings if isinstance(tree, TrainState) else self.sums_shardings
        return lax.with_sharding_constraint(tree, shardings(tree))


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    mesh: Mesh | None = None,
    microbatch_size: int | None = None,
    *,
    shard_params: bool = False,
) -> TrainStep:
    """Returns the function that performs one update: `state, metrics = step(state, batch, rng)`.

    The numbers don't depend on the layout: a batch in one piece, the same batch in
    micro-batches, and either of them over any number of devices give the same update up to
    rounding, and the same bits where the layout is the same.

    Args:
      loss_fn: `loss_fn(params, model_state, batch, rng) -> (loss, (model_state, metrics))`.
        Loss and metrics are means over the batch weighted by `batch["weight"]`, see
        `weighted_mean`; `metrics` is a dict without the key "loss". The arrays that a
        `jax.tree_util.Partial` binds are arguments of the program: others of the same shape share
        it in a cache of compiled programs.
      tx: the optimizer.
      mesh: the devices, as `data_mesh` or any other mesh; each device then works on its share of
        the examples. By default the batch is computed where its arrays lie.
      microbatch_size: the number of examples, over all devices, in the micro-batches that the
        batch comes in. Arrays are then (K, m, ...) instead of (B, ...), and one micro-batch
        after another is computed in the memory of one. Each starts from the step's incoming
        model state; gradients, metrics and floating-point model state combine as means
        weighted by the micro-batches' sums of weights, other model state is the last one's.
        With a `loss_fn` marked by `sequential_model_state` each micro-batch starts from the
        model state that the one before left, and the last one's stays. With one marked by
        `independent_groups` the devices tell each other about gradients once per update
        instead of once per micro-batch, where no group spans two of them.
      shard_params: keep parameters and optimizer state spread over the devices (FSDP), each
        array along its largest axis that they divide, small ones whole. They are gathered for
        the time of an update's gradients.

    Returns:
      A `TrainStep`. It folds `state.step` and the micro-batch's number into `rng`. The metrics
      are those of `loss_fn` and "loss". A call returns before its update is computed: wait for
      the metrics of the step before last (`jax.block_until_ready`), or batches pile up in
      memory, and on several virtual CPU devices XLA's collectives can time out.

    Raises:
      UsageError: `microbatch_size` is below 1, or there are parameters to shard but no mesh.

    >>> import jax.numpy as jnp
    >>> from adabatch_jax import weighted_mean
    >>> def loss_fn(params, model_state, batch, rng):
    ...     errors = (batch["x"] * params["w"] - batch["y"]) ** 2
    ...     return weighted_mean(errors, batch["weight"]), (model_state, {})
    >>> tx = optax.sgd(0.25)
    >>> state = TrainState.create(params={"w": jnp.zeros(())}, tx=tx)
    >>> step = make_train_step(loss_fn, tx)
    >>> batch = {"x": jnp.ones(4), "y": jnp.full(4, 2.0), "weight": jnp.ones(4)}
    >>> state, metrics = step(state, batch, jax.random.key(0))
    >>> float(metrics["loss"]), float(state.params["w"])
    (4.0, 1.0)
    """
    if microbatch_size is not None and microbatch_size < 1:
        raise UsageError(f"microbatch_size must be at least 1, got {microbatch_size}.")
    if shard_params and mesh is None:
        raise UsageError("shard_params=True needs the mesh to spread the parameters over.")
    mesh = None if mesh is None else as_data_mesh(mesh)
    # Once here, or every call would copy them to the devices.
    constants = jax.device_put(
        tuple(jax.tree.leaves(_as_pytree(loss_fn))), None if mesh is None else replicated(mesh)
    )
    return TrainStep(loss_fn, tx, mesh, microbatch_size, shard_params, constants)


def _as_pytree(loss_fn: LossFn) -> jax.tree_util.Partial:
    """The loss as a pytree, whose leaves are the arrays that it binds."""
    is_partial = isinstance(loss_fn, jax.tree_util.Partial)
    return loss_fn if is_partial else jax.tree_util.Partial(loss_fn)
