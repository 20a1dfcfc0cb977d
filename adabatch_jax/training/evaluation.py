"""Metrics over a whole source, exact for any batch size and any number of devices."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch_jax.data.abstract_arrays import (
    abstract_batch,
    example_types,
    laid_out,
    tree_bytes,
)
from adabatch_jax.data.array_trees import map_arrays
from adabatch_jax.data.batches import batch_rows, examples_of, put_rows, read_rows
from adabatch_jax.data.example_reading import check_source, reader_of
from adabatch_jax.data.mesh import BatchMesh, as_batch_mesh
from adabatch_jax.data.prefetching import BackgroundThread, never, prefetched
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.data.sources import Source
from adabatch_jax.schedules.plan import Step
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.fault_points import reach
from adabatch_jax.training.padding_check import check_evaluation
from adabatch_jax.training.parameter_sharding import gathered_specs, given_spec, shardings_of
from adabatch_jax.training.text_figures import with_text_figures
from adabatch_jax.training.train_state import TrainState

EvalFn = Callable[[Any, Any, Any], Mapping[str, jax.Array]]
EvalParams = Callable[[Any, Any], Any]
Batch = dict[str, jax.Array]


class Evaluator:
    """Evaluates states on one source; the program is compiled once. A context manager.

    What the source gives stays on the devices where it fits; an evaluation then reads and sends
    nothing but the state.

    Args:
      eval_fn: `eval_fn(params, model_state, batch) -> metrics`, a dict of scalars, means over
        the batch weighted by `batch["weight"]`.
      batch_size: examples per batch, rounded up to a multiple of the devices. It changes
        memory and speed, not the result.
      mesh: as in `make_train_step`; a state that comes sharded is evaluated as it lies.
      keep_limit_bytes: the most memory, on each device, to keep examples in.
      eval_params: `eval_params(opt_state, params)` makes the parameters that are evaluated, as
        `optax.contrib.schedule_free_eval_params` does; None: those of the state.

    Attributes:
      num_bytes: memory that the kept examples take on each device; 0 where they don't fit.
      programs: by the rows of a batch, of which the last one may have fewer, what evaluates it;
        None: compiled when it is needed. To have it ahead of time put `lower(...).compile()` here.

    Raises:
      UsageError: an empty source, or a batch size below 1.
    """

    def __init__(
        self,
        eval_fn: EvalFn,
        source: Source,
        batch_size: int,
        mesh: Mesh | NamedSharding | BatchMesh | None = None,
        keep_limit_bytes: int = 2**30,
        eval_params: EvalParams | None = None,
    ):
        if batch_size < 1:
            raise UsageError(f"the evaluation's batch_size must be at least 1, got {batch_size}.")
        check_source("source", source)
        if len(source) == 0:
            raise UsageError("the evaluation's source has no examples.")
        self._reader, self._mesh = reader_of(source), as_batch_mesh(mesh)
        layouts = Layouts(num_devices=1 if mesh is None else self._mesh.num_shards)
        self._layouts = layouts
        # No larger than the source needs. The last batch is padded for the devices only.
        self._num_rows = layouts.of(min(batch_size, len(source))).padded_size
        self._last = layouts.of((len(source) - 1) % self._num_rows + 1)
        self._has_padding = self._last.has_padding
        self._eval_fn = eval_fn
        self._params_of = None if eval_params is None else jax.jit(eval_params)
        self._num_examples = len(source)
        self._num_batches = -(-len(source) // self._num_rows)
        self._types = example_types(self._reader)
        sizes = [*[self._num_rows] * (self._num_batches - 1), self._last.padded_size]
        self.programs: dict[int, Callable[..., Mapping[str, jax.Array]] | None]
        self.programs = dict.fromkeys(sizes)
        row_bytes = tree_bytes(abstract_batch(self._types, (1,)))
        num_bytes = sum(sizes) * row_bytes // layouts.num_devices
        self.num_bytes = num_bytes if num_bytes <= keep_limit_bytes else 0
        self._kept: list[tuple[Step, Batch]] | None = None
        self._thread = BackgroundThread("evaluation")

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees what is kept, and ends the thread that reads, or leaves it behind if it hangs."""
        self._kept = None
        self._thread.close()

    def keep_nothing(self) -> None:
        """Keeps no examples on the devices from here on."""
        self.num_bytes, self._kept = 0, None

    def lower(self, state: TrainState, num_rows: int) -> jax.stages.Lowered:
        """Lowers a program for states like this one (arrays or `jax.ShapeDtypeStruct`s)."""
        params = state.params
        if self._params_of is not None:
            params = jax.eval_shape(self._params_of, state.opt_state, params)

        def like(leaf: Any) -> jax.ShapeDtypeStruct:
            value = jax.typeof(leaf)
            return jax.ShapeDtypeStruct(value.shape, value.dtype, weak_type=value.weak_type)

        evaluated = jax.tree.map(like, (params, state.model_state))
        lies = self._shardings(state)
        with self._in_mesh():
            return self._jitted(lies).lower(*laid_out(evaluated, lies), self._batch(num_rows))

    def _in_mesh(self) -> contextlib.AbstractContextManager:
        """Where `eval_fn` is traced: a `PartitionSpec` alone means this mesh."""
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh.mesh)

    def _shardings(self, state: TrainState) -> Any:
        """Where parameters and model state are evaluated: as they come sharded, or else whole."""
        if self._mesh is None:
            return None

        def lies(path: Any, leaf: Any) -> NamedSharding:
            given = given_spec("state" + jax.tree_util.keystr(path), leaf, self._mesh)
            return NamedSharding(self._mesh.mesh, given or PartitionSpec())

        return jax.tree.map_with_path(lies, (state.params, state.model_state))

    def _jitted(self, lies: Any) -> Any:
        """The program for parameters and model state that lie as `_shardings` says."""
        if self._mesh is None:
            return jax.jit(self._eval_fn)
        leaves, structure = jax.tree.flatten(lies[0])
        specs = tuple(leaf.spec for leaf in leaves)
        gathered = tuple(gathered_specs(specs, self._mesh))
        eval_fn = self._eval_fn
        if gathered != specs:
            eval_fn = _gathering(eval_fn, structure, tuple(shardings_of(gathered, self._mesh)))
        return jax.jit(eval_fn, out_shardings=self._mesh.whole)

    def __call__(
        self,
        state: TrainState,
        should_stop: Callable[[], bool] = never,
        on_batch: Callable[[], object] = never,
        may_break_off: Callable[[], bool] | None = None,
    ) -> dict[str, float] | None:
        """Returns the metrics over the whole source, summed up in float64.

        Args:
          state: what to evaluate.
          should_stop: asked between batches, and 10 times a second while one is waited for; True
            ends the evaluation, which then has no result: None.
          on_batch: called when another batch is on its way; the devices are at most two behind.
          may_break_off: asked instead while a batch is waited for.

        Raises:
          UsageError: a metric is no number, all examples weigh 0, or `eval_fn` sees padding, with
            which it is tried once where the devices don't divide the last batch, or again where
            that had no finite metrics.
        """
        params, model_state = state.params, state.model_state
        if self._params_of is not None:
            params = self._params_of(state.opt_state, params)
        lies = self._shardings(state)
        if self._mesh is not None:
            params, model_state = self._mesh.put_as((params, model_state), lies)
        jitted = self._jitted(lies)
        counts, results, kept = [], [], []
        for step, batch in self._batches(may_break_off or should_stop):
            if self.num_bytes:
                kept.append((step, batch))
            weight = batch["weight"]
            counts.append(weight.sum() if "weight" in self._types else step.num_real)
            with self._in_mesh():
                if self._has_padding and step.num_real == self._last.batch_size:
                    is_told = check_evaluation(self._eval_fn, params, model_state, batch)
                    self._has_padding = not is_told
                program = self.programs[len(weight)] or jitted
                results.append(program(params, model_state, batch))
            if len(results) > 2:
                # Dispatch runs ahead of the devices; without a bound batches fill the memory.
                jax.block_until_ready(results[-3])
            on_batch()
            reach("eval.mid")
            if should_stop():
                break
        if len(results) < self._num_batches:
            return None
        self._kept = kept or None
        results, counts = jax.device_get((results, counts))
        if not isinstance(results[0], Mapping):
            raise UsageError(
                f"eval_fn must return a dict of metrics, got a {type(results[0]).__name__}."
            )
        for name, value in results[0].items():
            if np.ndim(value):
                raise UsageError(
                    f"a metric is a number, but eval_fn's {name!r} has the shape {value.shape}; "
                    "return its mean, or one metric per entry."
                )
        counts = [float(count) for count in counts]
        if not any(counts):
            raise UsageError("all examples of the evaluation's source weigh 0; weigh some of them.")
        weighed = [(result, count) for result, count in zip(results, counts) if count]
        return with_text_figures(
            {
                name: sum(_total(result[name], count) for result, count in weighed) / sum(counts)
                for name in results[0]
            }
        )

    def _batch(self, num_rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        batch = abstract_batch(self._types, (num_rows,))
        return batch if self._mesh is None else laid_out(batch, self._mesh.of_batch(batch))

    def _batches(self, should_stop: Callable[[], bool]) -> Iterable[tuple[Step, Batch]]:
        """What the source holds, in order: kept, or read while the devices are at work."""
        if self._kept is not None:
            return self._kept
        num_rows, stop = self._num_rows, self._num_examples
        steps = (
            Step(number, 0, start, num_rows, min(num_rows, stop - start))
            for number, start in enumerate(range(0, stop, num_rows))
        )
        return prefetched(self._read, steps, self._thread, should_stop=should_stop)

    def _read(self, step: Step) -> Batch:
        examples = examples_of(None, 0, [step])  # None: in the source's own order
        layout = self._layouts.of(step.num_real)
        arrays = read_rows(self._reader, batch_rows(examples, [step], layout, self._mesh))
        return put_rows(map_arrays(lambda array: array[0, 0], arrays), self._mesh, 0)


@functools.lru_cache(maxsize=8)
def _gathering(eval_fn: EvalFn, structure: Any, gathered: tuple[NamedSharding, ...]) -> EvalFn:
    """`eval_fn` with parameters that are gathered along the data axes, as they are for an update.

    The same function each time, by which jit finds what it has compiled.
    """

    def gathering(params, model_state, batch):
        params = lax.with_sharding_constraint(params, jax.tree.unflatten(structure, gathered))
        return eval_fn(params, model_state, batch)

    return gathering


def _total(mean: Any, count: float) -> float:
    """The sum behind a mean: whole where rounding alone keeps it from being whole.

    So accuracies are exact: 1/3 of 120 examples are 40 however they were cut into batches.
    """
    mean = np.asarray(mean)
    total = float(mean) * count
    if not np.isfinite(total) or not np.issubdtype(mean.dtype, np.floating):
        return total
    whole = round(total)
    return float(whole) if abs(total - whole) <= np.finfo(mean.dtype).eps * abs(total) else total


def evaluate(
    eval_fn: EvalFn,
    state: TrainState,
    source: Source,
    batch_size: int,
    mesh: Mesh | NamedSharding | None = None,
    *,
    eval_params: EvalParams | None = None,
) -> dict[str, float]:
    """Returns the metrics of `state` over the whole source; see `Evaluator`.

    Where the source has a "weight" of its own, an example counts as often as that says.

    Repeated calls with the same `eval_fn` and shapes don't compile again.

    Args:
      eval_fn: `eval_fn(params, model_state, batch) -> metrics`, means weighted by
        `batch["weight"]`.
      state: whose parameters and model state are looked at.
      source: the examples, each of which counts once.
      batch_size: examples that are computed at a time; the result doesn't depend on it.
      mesh: as in `make_train_step`; None for one device.
      eval_params: `eval_params(opt_state, params)` makes the parameters that are evaluated, as
        `optax.contrib.schedule_free_eval_params` does; None: those of the state.

    >>> import optax
    >>> from adabatch_jax.data.sources import array_source
    >>> from adabatch_jax.training.loss_functions import weighted_mean
    >>> source = array_source({"x": np.arange(5, dtype=np.float32)})
    >>> def eval_fn(params, model_state, batch):
    ...     return {"x": weighted_mean(batch["x"], batch["weight"])}
    >>> state = TrainState.create(params={}, tx=optax.sgd(1.0))
    >>> evaluate(eval_fn, state, source, batch_size=2)
    {'x': 2.0}
    """
    with Evaluator(eval_fn, source, batch_size, mesh, 0, eval_params) as evaluator:
        return evaluator(state)
