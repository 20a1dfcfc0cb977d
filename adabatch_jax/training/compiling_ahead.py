"""`compile_ahead`: the programs of a plan's batch sizes, before one's own loop comes to them."""

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import numpy as np

from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.schedules.plan import BatchPlan, check_plan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.system.errors import UsageError, one_line
from adabatch_jax.training.compiled_programs import Programs
from adabatch_jax.training.train_step import TrainStep

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Shape = tuple[int, ...]


class CompiledAhead(Generic[Arguments, Result]):
    """A step whose programs are there before they are needed; `compile_ahead` makes it.

    It is called as the step is, and does what that does.

    >>> import jax.numpy as jnp
    >>> from adabatch_jax import make_plan
    >>> step = jax.jit(lambda total, batch: total + batch.sum())
    >>> step = compile_ahead(step, make_plan("2 x2 every 4sp", None, "12sp"))
    >>> float(step(jnp.zeros(()), jnp.ones(2)))
    2.0
    >>> step.close()
    """

    def __init__(
        self,
        step: Callable[Arguments, Result],
        plan: BatchPlan,
        microbatch_size: int | None,
        batch_argnums: Sequence[int] | None,
    ):
        self._step: Any = step
        self._plan = plan
        self._microbatch_size = microbatch_size
        self._batch_argnums = batch_argnums
        self._programs: Programs | None = None
        self._is_closed = False

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Calls the step, by the program that was compiled for batches of this shape.

        Raises:
          Exception: what the step raises, or raised when it was compiled for this shape.
        """
        if self._is_closed:
            return self._step(*args, **kwargs)
        if kwargs:
            args, kwargs = self._in_place(args, kwargs)
        if self._programs is None:
            self.prepare(args, kwargs)
        name = self._shapes([*args, *kwargs.values()])
        if name not in self._programs.names:
            return self._step(*args, **kwargs)
        program = self._programs.get(name).compiled
        try:
            if isinstance(self._step, TrainStep):
                return self._step.run(program, *args, **kwargs)
            return program(*args, **kwargs)
        except (TypeError, ValueError) as error:
            # Raised before anything is computed or donated: these are another program's arguments.
            self.close()
            warnings.warn(
                "what was compiled ahead doesn't take the arguments of this call, so the step "
                f"compiles by itself from here on: {one_line(error)}.",
                stacklevel=2,
            )
            return self._step(*args, **kwargs)

    def _in_place(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments by name where the step's signature has them; those by name only stay so."""
        try:
            bound = inspect.signature(self._step).bind(*args, **kwargs)
        except (TypeError, ValueError):  # it has none, or the call will say what is wrong
            return args, kwargs
        return bound.args, bound.kwargs

    def prepare(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> None:
        """Compiles for such arguments now, and for the plan's later sizes in the background.

        Raises:
          UsageError: which of the arguments is the batch can't be told.
        """
        names = list(kwargs or {})
        example = [*args, *(kwargs or {}).values()]
        if self._batch_argnums is None:
            self._batch_argnums = self._found_batch(example)
        batch = [example[number] for number in self._batch_argnums]
        given, all_axes = self._leading_axes(jax.tree.leaves(batch)[0])
        is_everywhere = _is_so_in_every_thread()
        lowerings = {}
        for axes in all_axes:
            resized = functools.partial(_like, given=given, axes=axes)
            like = [
                jax.tree.map(resized if number in self._batch_argnums else _like, argument)
                for number, argument in enumerate(example)
            ]
            by_name = dict(zip(names, like[len(args) :], strict=True))
            lower = functools.partial(self._step.lower, *like[: len(args)], **by_name)
            if not is_everywhere:
                lower = functools.partial(lambda lowered: lowered, lower())
            lowerings[self._shapes(like)] = lower
        self._programs = programs = Programs(lowerings)
        weakref.finalize(self, programs.close)
        programs.get(programs.names[0])
        programs.compile_rest()

    def close(self) -> None:
        """Compiles nothing more in the background; from here on calls are the step's own.

        The end of this object, or of the process, does the same.
        """
        self._is_closed = True
        if self._programs is not None:
            self._programs.close()

    def _shapes(self, args: Sequence[Any]) -> tuple[Shape, ...]:
        """What tells the programs apart: the shapes of the batch's arrays."""
        batch = [args[number] for number in self._batch_argnums or ()]
        return tuple(map(np.shape, jax.tree.leaves(batch)))

    def _leading_axes(self, leaf: Any) -> tuple[Shape, list[Shape]]:
        """The leading axes of a batch's array, and those that it has from there on in the plan.

        What comes before is over, in a loop that goes on; another size than a phase's is an
        example of all of them.
        """
        axis = 0 if self._microbatch_size is None else 1
        given = np.shape(leaf)[: axis + 1]
        layouts = Layouts(self._microbatch_size, _num_shards(leaf, axis))

        def axes(size):
            layout = layouts.of(size)
            return (layout.num_microbatches, layout.padded_size)[-1 - axis :]

        begins = (p.start_step for p in self._plan.phases if axes(p.batch_size) == given)
        planned = [*map(axes, first_updates_by_size(self._plan, next(begins, 0)))]
        own = [given] if given in planned else []
        return given, list(dict.fromkeys(own + planned))

    def _found_batch(self, example: Sequence[Any]) -> tuple[int]:
        """The argument with a "weight", or else the one that has the shape of a planned batch."""

        def is_batch(leaf):
            given, planned = self._leading_axes(leaf)
            return given in planned

        def begins_as_one(argument):
            leaves = jax.tree.leaves(argument)
            return bool(leaves) and all(map(is_batch, leaves))

        def is_ours(argument):
            return isinstance(argument, Mapping) and "weight" in argument

        ours = [number for number, argument in enumerate(example) if is_ours(argument)]
        found = ours or [n for n, argument in enumerate(example) if begins_as_one(argument)]
        if len(found) != 1:
            raise UsageError(
                f"{len(found) or 'none'} of the {len(example)} arguments of `step` look like a "
                f"batch of the plan, whose sizes are {self._plan.batch_sizes}; say which one is, "
                "as in `batch_argnums=1`."
            )
        return (found[0],)


def _like(leaf: Any, given: Shape = (), axes: Shape = ()) -> Any:
    """What describes an array to the compiler, its leading axes exchanged; others as they are."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return leaf
    shape = tuple(leaf.shape)
    if given and shape[: len(given)] == given:
        shape = axes + shape[len(given) :]
    is_array = isinstance(leaf, jax.Array)
    return jax.ShapeDtypeStruct(
        shape,
        leaf.dtype if is_array else jax.dtypes.canonicalize_dtype(leaf.dtype),
        # Where an uncommitted array lies is nothing to insist on.
        sharding=leaf.sharding if is_array and leaf.committed else None,
        weak_type=getattr(leaf, "weak_type", False),
    )


def _num_shards(leaf: Any, axis: int) -> int:
    """How many pieces an axis of an array is split into."""
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
    if sharding is None or axis >= leaf.ndim:
        return 1
    return -(-leaf.shape[axis] // sharding.shard_shape(leaf.shape)[axis])


def _is_so_in_every_thread() -> bool:
    """Whether JAX's settings are the same in another thread: those of a `with` are not.

    A program that was traced there would be another one, in precision or types for example.
    """

    def settings():
        mesh = jax.sharding.get_abstract_mesh()
        return mesh, {name: getattr(jax.config, name, None) for name in jax.config.values}

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(settings).result() == settings()


def compile_ahead(
    step: Callable[Arguments, Result],
    plan: BatchPlan,
    example: Sequence[Any] | None = None,
    *,
    microbatch_size: int | None = None,
    batch_argnums: int | Sequence[int] | None = None,
) -> CompiledAhead[Arguments, Result]:
    """Compiles a step for all the plan's batch sizes before a loop of one's own comes to them.

    The first program is compiled at once, the others one after the other in a thread while the
    loop goes on, so that a change of batch size doesn't stop it, nor a partial batch. A call with
    other shapes is the step's own, which compiles then. Numbers are those of the step, bit for bit.

    Args:
      step: what `make_train_step` returns, or any function that `jax.jit` or `nnx.jit` compiles,
        without static arguments.
      plan: which batch sizes come.
      example: the arguments of a call, as `(state, batch, rng)`: arrays or
        `jax.ShapeDtypeStruct`s, which are looked at only. The sizes are those from this batch's
        on. By default the first call's, which then takes as long as without.
      microbatch_size: as in `batches`, where that gives arrays (K, m, ...); known of a step that
        `make_train_step` returned.
      batch_argnums: which of the function's arguments are the batch, from 0. By default the one with a
        "weight", as `batches` gives it, or else the only one whose arrays all begin as one of the
        plan's batches.

    Returns:
      A function that is called like `step`; its `close` ends what is still compiled.

    Raises:
      UsageError: `step` isn't compiled by one of these, or which argument is the batch can't be told.

    Warns:
      UserWarning: a call has arguments whose types, places or names are not the example's; it,
        and what follows, is the step's own.

    >>> import jax.numpy as jnp
    >>> from adabatch_jax import array_source, batches, make_plan
    >>> plan = make_plan("2 x2 every 1ep", num_examples=8, duration="3ep")
    >>> @jax.jit
    ... def step(total, batch):
    ...     return total + batch["x"].sum()
    >>> step, total = compile_ahead(step, plan), jnp.zeros(())
    >>> for batch in batches(array_source({"x": np.arange(8.0)}), plan):
    ...     total = step(total, batch)
    >>> float(total)
    84.0
    """
    check_plan(plan)
    if not isinstance(step, jax.stages.Wrapped | TrainStep):
        raise UsageError(
            "`step` must be what jax.jit, nnx.jit or make_train_step returns, got a "
            f"{type(step).__name__}; in place of eqx.filter_jit, jax.jit takes the arrays of "
            "eqx.partition, and in place of jax.pmap, arrays on a mesh."
        )
    if isinstance(step, TrainStep):
        microbatch_size = step.microbatch_size
    if isinstance(batch_argnums, int):
        batch_argnums = (batch_argnums,)
    ahead = CompiledAhead(step, plan, microbatch_size, batch_argnums)
    if example is not None:
        ahead.prepare(example)
    return ahead
