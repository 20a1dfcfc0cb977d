"""`make_train_step` and the step it returns: the public, compiled form of `update.Update`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from adabatch_jax.data.abstract_arrays import laid_out
from adabatch_jax.training.loss_functions import LossFn
from adabatch_jax.training.optimizers import refuse_multi_steps, warn_of_whole_batches
from adabatch_jax.training.parameter_sharding import shardings_of
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.update import Constants, Metrics, Update


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """A train step; `make_train_step` makes it. Calling it performs one compiled update.

    Attributes:
      constants: the arrays that `loss_fn` holds, the fourth argument of a lowered step.

    >>> import jax.numpy as jnp
    >>> def loss_fn(params, model_state, batch, rng):
    ...     return params["w"], (model_state, {})
    >>> tx = optax.sgd(1.0)
    >>> step = make_train_step(loss_fn, tx)
    >>> state = TrainState.create(params={"w": 3.0}, tx=tx)
    >>> state, metrics = step(state, {"weight": jnp.ones(4)}, jax.random.key(0))
    >>> float(metrics["loss"]), float(state.params["w"])
    (3.0, 2.0)
    """

    _update: Update

    def __call__(
        self, state: TrainState, batch: Mapping[str, Any], rng: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Returns the state after one update, and the batch's metrics.

        Args:
          state: the state before; it is donated, so don't use it again.
          batch: arrays (B, ...), or (K, m, ...) with micro-batches, among them "weight".
          rng: the run's key, the same at every call.

        Raises:
          UsageError: the batch doesn't have the layout that this step was made for, or the state
            is sharded as the mesh can't hold it.
        """
        try:
            return self.run(None, state, batch, rng)
        except ValueError:
            # jit refuses a batch that the devices don't divide before it traces, where the
            # other checks are. A good batch doesn't pay for finding out why.
            self._update.check_batch(batch)
            raise

    def run(
        self, compiled: Callable[..., Any] | None, state: TrainState, batch: Any, rng: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """A call, by what `lower(...)` was compiled to, or by jit's own program."""
        program, is_elsewhere = self._program(state)
        if is_elsewhere:
            state = program.update.place(state)
        if program.places_batch:
            batch = jax.device_put(dict(batch), program.update.batch_shardings(batch))
        return (compiled or program.jitted)(state, batch, rng, self.constants)

    def lower(self, state: Any, batch: Any, rng: Any) -> jax.stages.Lowered:
        """Lowers the step for arguments of these shapes (arrays or `jax.ShapeDtypeStruct`s).

        Raises:
          UsageError: as a call.
        """
        self._update.check_batch(batch)
        program, _ = self._program(state)
        state = laid_out(state, program.update.state_shardings(state))
        if program.places_batch:
            batch = laid_out(dict(batch), program.update.batch_shardings(batch))
        return program.jitted.lower(state, batch, rng, self.constants)

    def place(self, tree: Any) -> Any:
        """Returns a state where this step wants it; anything else whole on every device."""
        return self._update.place(tree)

    @property
    def microbatch_size(self) -> int | None:
        """Examples per micro-batch over all devices; None for whole batches."""
        return self._update.microbatch_size

    @property
    def constants(self) -> Constants:
        """The arrays that `loss_fn` holds."""
        return self._update.constants

    @functools.cached_property
    def _programs(self) -> dict[Any, tuple["_Program", bool]]:
        return {}

    def _program(self, state: TrainState) -> tuple["_Program", bool]:
        """What performs updates of states that lie as this one, and whether it wants them elsewhere."""
        if self._update.mesh is None:
            lies = None
        else:
            leaves, structure = jax.tree.flatten(state)
            lies = structure, tuple(getattr(leaf, "sharding", None) for leaf in leaves)
        found = self._programs.get(lies)  # looked up once: it compares all leaves
        if found is None:
            update = self._update.keeping(state)
            wanted = lies and (structure, tuple(jax.tree.leaves(update.state_shardings(state))))
            program, _ = self._programs.setdefault(wanted, (_Program(update), False))
            found = self._programs[lies] = program, lies != wanted
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Program:
    """An update of states that are sharded alike, compiled when it is first called.

    Attributes:
      update: knows how they are sharded.
    """

    update: Update

    @property
    def places_batch(self) -> bool:
        """Whether a batch has to be put where it belongs: jit can't if arrays lie differently."""
        mesh = self.update.mesh
        return mesh is not None and len(mesh.spec) > 1

    @functools.cached_property
    def jitted(self) -> Any:
        """The compiled function; it donates a state on the mesh."""
        update, mesh, shardings = self.update, self.update.mesh, {}
        if mesh is not None:
            of_state = shardings_of(update.specs, mesh)
            of_batch = None if self.places_batch else update.batch_shardings({})
            shardings = {
                "in_shardings": (of_state, of_batch, mesh.whole, mesh.whole),
                "out_shardings": (of_state, mesh.whole),
            }

        num_rows: list[int] = []

        def step(state, batch, rng, constants):  # traced for each size of batch
            if update.microbatch_size is not None:
                refuse_multi_steps(state.opt_state, "with microbatch_size in `make_train_step`")
            updated = update(state, batch, rng, constants)
            num_rows.append(batch["weight"].size)
            warn_of_whole_batches(state.opt_state, num_rows)
            return updated[:2]

        return jax.jit(step, donate_argnums=0, **shardings)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    mesh: Mesh | NamedSharding | None = None,
    microbatch_size: int | None = None,
    sequential_model_state: bool = False,
    independent_groups: int | None = None,
    *,
    shard_params: bool = False,
    skip_nonfinite: bool = False,
) -> TrainStep:
    """Returns the function that performs one update: `state, metrics = step(state, batch, rng)`.

    The numbers don't depend on the layout: a batch in one piece, the same batch in
    micro-batches, and either of them over any number of devices give the same update up to
    rounding, and the same bits where the layout is the same. Micro-batches do so where the loss
    is a weighted mean of what each example gives by itself: what looks at several examples at
    once, as a contrastive loss or a normalization over the batch, sees those of its micro-batch
    only, and means something else then.

    Args:
      loss_fn: `loss_fn(params, model_state, batch, rng) -> (loss, (model_state, metrics))`.
        Loss and metrics are means over the batch weighted by `batch["weight"]`, see
        `weighted_mean` and `check_padding`; `metrics` is a dict without the key "loss". The arrays that a
        `jax.tree_util.Partial` binds are arguments of the program: others of the same shape share
        it in a cache of compiled programs.
      tx: the optimizer. It gets `value`, the loss, and `grad` where it takes them. In
        `optax.MultiSteps` a call is a micro-batch: call the step with one after another, arrays
        (m, ...) of `batches(microbatch_size=m)`, and say `accumulation_schedule(plan, m)`.
        `state.step` counts calls then, and the optimizer's own counts the plan's updates.
      mesh: the devices: a mesh of one axis, as `data_mesh` gives, or the `NamedSharding` of one
        (micro-)batch on a mesh of any axes, the first entry of whose spec names those that share
        the examples out. Each device then works on its share of them. A state that comes sharded
        over the mesh stays so, as with `PartitionSpec(None, "model")` parameters; the rest is kept
        whole on every device. By default the batch is computed where its arrays lie.
      microbatch_size: the number of examples, over all devices, in the micro-batches that the
        batch comes in. Arrays are then (K, m, ...) instead of (B, ...), and one micro-batch
        after another is computed in the memory of one. Each starts from the step's incoming
        model state; gradients, metrics and floating-point model state combine as means
        weighted by the micro-batches' sums of weights, other model state is the last one's. On a
        CPU use `models.convolution.conv2d`: other convolutions are 18 to 40 times slower there.
        A loss that compares the batch's examples with each other needs None.
      sequential_model_state: each micro-batch starts from the model state that the one before
        left, and the last one's stays. A batch then leaves the same state in micro-batches as in
        one piece if `loss_fn` updates it group by group, in the order of the rows, as running
        statistics are.
      independent_groups: `loss_fn` computes each group of so many consecutive rows apart (1: it
        doesn't mix rows at all): loss and metrics are weighted means over the rows, a row's share
        depends on its own group only, and not on where in the batch that lies, so what is random
        is drawn from the example's own key (`example_keys`) and not from `rng`. Model state is
        a weighted mean over groups too, or sequential and read through `rows_of_all_devices`.
        Devices then tell each other about gradients once per update instead of once per
        micro-batch, where no group spans two of them and one axis of the mesh shares the examples
        out, on which `loss_fn` then puts no constraint itself. None promises nothing.
      shard_params: keep parameters and optimizer state that don't come sharded spread over the
        devices that share the examples out (FSDP), each array along its largest axis that they
        divide, small ones whole. They are gathered for the time of an update's gradients.
      skip_nonfinite: leave out an update whose loss or gradients aren't finite. It counts as a
        step all the same: parameters, model state and the optimizer's floating-point state stay,
        `state.step` and the optimizer's counts go on, and with them every schedule.

    Returns:
      A `TrainStep`. It folds `state.step` and the micro-batch's number into `rng`. The metrics
      are those of `loss_fn` and "loss". A call returns before its update is computed: wait for
      the metrics of the step before last (`jax.block_until_ready`), or batches pile up in
      memory, and on several virtual CPU devices XLA's collectives can time out.

    Raises:
      UsageError: `microbatch_size` or `independent_groups` is below 1, there are parameters to
        shard but no mesh, or a bare mesh has several axes; by the first call: the optimizer can't
        work with what it gets, or is `optax.MultiSteps` and `microbatch_size` is set.

    Warns:
      UserWarning: `optax.MultiSteps` gets a larger batch than before, as whole ones of a plan.

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
    return TrainStep(
        Update(
            loss_fn, tx, mesh, microbatch_size, sequential_model_state, independent_groups,
            shard_params, skip_nonfinite,
        )
    )  # fmt: skip
