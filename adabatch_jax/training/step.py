"""One update of a model from one batch, on any number of devices and micro-batches."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from adabatch_jax.errors import UsageError
from adabatch_jax.training.accumulation import Outputs, accumulate
from adabatch_jax.training.mesh import as_data_mesh, batch_sharding, replicated
from adabatch_jax.training.state import TrainState

LossFn = Callable[[Any, Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, tuple[Any, Any]]]


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the mean over a batch in which example i counts `weight[i]` times.

    Args:
      values: shape (B, ...), one entry per example; booleans count as 0 and 1.
      weight: shape (B,), 1 for a real example and 0 for padding. A padded row must be finite,
        as those that repeat a real example are.

    Returns:
      The mean over the first axis, of shape `values.shape[1:]`; 0 where all weights are 0.

    >>> float(weighted_mean(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
    1.5
    """
    values, weight = jnp.asarray(values), jnp.asarray(weight)
    total = weight.sum()
    column = weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))
    return (values * column).sum(axis=0) / jnp.where(total > 0, total, 1)


_SEQUENTIAL = "has_sequential_model_state"


def sequential_model_state(loss_fn: LossFn) -> LossFn:
    """Marks a `loss_fn` whose model state is updated example by example, or group by group.

    Running statistics are: a batch that is computed in micro-batches then leaves the same model
    state as in one piece, if `loss_fn` updates it for the same groups of rows in row order. The
    mark belongs to this function; one that wraps it must be marked itself.

    >>> @sequential_model_state
    ... def loss_fn(params, model_state, batch, rng):
    ...     total = model_state["total"] + batch["weight"].sum()
    ...     return 0 * params["w"], ({"total": total}, {})
    >>> tx = optax.sgd(1.0)
    >>> params, model_state = {"w": jnp.zeros(())}, {"total": jnp.zeros(())}
    >>> state = TrainState.create(params=params, tx=tx, model_state=model_state)
    >>> step = make_train_step(loss_fn, tx, microbatch_size=2)
    >>> state, _ = step(state, {"weight": jnp.ones((3, 2))}, jax.random.key(0))
    >>> float(state.model_state["total"])
    6.0
    """
    setattr(loss_fn, _SEQUENTIAL, True)
    return loss_fn


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """A compiled train step; `make_train_step` makes it.

    Attributes:
      mesh: the devices that each (micro-)batch is spread over, or None.
      microbatch_size: real examples in a micro-batch over all devices, or None.
      jitted: the function underneath. It expects a state that lies on the mesh, and behind the
        other arguments the constants.
      constants: the arrays that `loss_fn` holds, where the devices want them.
    """

    mesh: Mesh | None
    microbatch_size: int | None
    jitted: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    constants: tuple[jax.Array, ...]

    def __call__(
        self, state: TrainState, batch: Mapping[str, Any], rng: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
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
            return self.jitted(state, batch, rng, *self.constants)
        except ValueError:
            # jit refuses a batch that the devices don't divide before it traces, where the
            # other checks are. A good batch doesn't pay for finding out why.
            self.check_batch(batch)
            raise

    def lower(self, state: Any, batch: Any, rng: Any) -> jax.stages.Lowered:
        """Lowers the step for arguments of these shapes (arrays or `jax.ShapeDtypeStruct`s)."""
        self.check_batch(batch)
        return self.jitted.lower(state, batch, rng, *self.constants)

    def place(self, tree: Any) -> Any:
        """Returns a state or a key where this step wants it: whole on each device of the mesh."""
        return tree if self.mesh is None else jax.device_put(tree, replicated(self.mesh))

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raises a UsageError unless the batch has the layout that this step was made for."""
        num_devices = 1 if self.mesh is None else self.mesh.size
        _check_batch(batch, self.microbatch_size, num_devices)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    mesh: Mesh | None = None,
    microbatch_size: int | None = None,
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
        model state that the one before left, and the last one's stays.

    Returns:
      A `TrainStep`. It folds `state.step` and the micro-batch's number into `rng`. The metrics
      are those of `loss_fn` and "loss". A call returns before its update is computed: wait for
      the metrics of the step before last (`jax.block_until_ready`), or batches pile up in
      memory, and on several virtual CPU devices XLA's collectives can time out.

    Raises:
      UsageError: `microbatch_size` is below 1.

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
    mesh = None if mesh is None else as_data_mesh(mesh)
    num_devices = 1 if mesh is None else mesh.size
    sequential = getattr(loss_fn, _SEQUENTIAL, False)
    if not isinstance(loss_fn, jax.tree_util.Partial):
        loss_fn = jax.tree_util.Partial(loss_fn)
    constants, treedef = jax.tree.flatten(loss_fn)

    def train_step(
        state: TrainState, batch: Mapping[str, jax.Array], rng: jax.Array, *constants: jax.Array
    ):
        _check_batch(batch, microbatch_size, num_devices)
        grad_fn = _grad_fn(treedef.unflatten(constants), state)
        rng = jax.random.fold_in(rng, state.step)
        if microbatch_size is not None and batch["weight"].shape[0] > 1:
            outputs = accumulate(
                grad_fn, state.params, state.model_state, dict(batch), rng, sequential
            )
        else:
            if microbatch_size is not None:
                batch = jax.tree.map(lambda leaf: leaf[0], dict(batch))
            outputs = grad_fn(state.model_state, batch, jax.random.fold_in(rng, 0))
        updates, opt_state = tx.update(outputs.grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, outputs.model_state, opt_state), outputs.metrics

    shardings = {}
    if mesh is not None:
        whole, spread = replicated(mesh), batch_sharding(mesh, microbatch_size is not None)
        arguments = (whole, spread, whole, *(whole for _ in constants))
        shardings = {"in_shardings": arguments, "out_shardings": whole}
    jitted = jax.jit(train_step, donate_argnums=0, **shardings)
    # Once here, or every call would copy them to the devices.
    constants = jax.device_put(tuple(constants), None if mesh is None else replicated(mesh))
    return TrainStep(mesh, microbatch_size, jitted, constants)


def _grad_fn(
    loss_fn: LossFn, state: TrainState
) -> Callable[[Any, Mapping[str, jax.Array], jax.Array], Outputs]:
    """Returns `(model_state, batch, rng) -> Outputs` at this state's parameters."""

    def grad_fn(model_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array) -> Outputs:
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (model_state, metrics)), grads = value_and_grad(
            state.params, model_state, batch, rng
        )
        if "loss" in metrics:
            raise UsageError("loss_fn's metrics must not have the key 'loss', the step adds it.")
        before, after = _description(state.model_state), _description(model_state)
        if before != after:
            raise UsageError(
                "loss_fn must return a model_state of the same structure, shapes and dtypes as "
                f"it was given, {before}, got {after}."
            )
        return Outputs(grads, model_state, {**metrics, "loss": loss})

    return grad_fn


def _description(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), tree)


def _check_batch(batch: Mapping[str, Any], microbatch_size: int | None, num_devices: int) -> None:
    """Raises a UsageError unless the batch's arrays have the layout that the step expects."""
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
