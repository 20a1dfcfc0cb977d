"""Metrics over a whole source, exact for any batch size and any number of devices."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from adabatch_jax.data.sources import Source
from adabatch_jax.errors import UsageError
from adabatch_jax.training.mesh import as_data_mesh, batch_sharding, replicated
from adabatch_jax.training.state import TrainState

EvalFn = Callable[[Any, Any, Mapping[str, jax.Array]], Mapping[str, jax.Array]]


class Evaluator:
    """Evaluates states on one source; the program is compiled once.

    Args:
      eval_fn: `eval_fn(params, model_state, batch) -> metrics`, a dict of scalars, means over
        the batch weighted by `batch["weight"]`.
      source: the examples, all of which are read, in order.
      batch_size: examples per batch, rounded up to a multiple of the devices. It changes
        memory and speed, not the result.
      mesh: the devices that share a batch, or None.

    Raises:
      UsageError: an empty source, or a batch size below 1.
    """

    def __init__(
        self, eval_fn: EvalFn, source: Source, batch_size: int, mesh: Mesh | None = None
    ):
        if batch_size < 1:
            raise UsageError(f"the evaluation's batch_size must be at least 1, got {batch_size}.")
        if len(source) == 0:
            raise UsageError("the evaluation's source has no examples.")
        mesh = None if mesh is None else as_data_mesh(mesh)
        self._source, self._mesh = source, mesh
        num_devices = 1 if mesh is None else mesh.size
        # One shape for all batches, no larger than the source needs.
        self._num_rows = -(-min(batch_size, len(source)) // num_devices) * num_devices
        shardings = {}
        if mesh is not None:
            whole, spread = replicated(mesh), batch_sharding(mesh)
            shardings = {"in_shardings": (whole, whole, spread), "out_shardings": whole}
        self._jitted = jax.jit(eval_fn, **shardings)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Returns the metrics over the whole source, summed up in float64."""
        params, model_state = state.params, state.model_state
        if self._mesh is not None:
            params, model_state = jax.device_put((params, model_state), replicated(self._mesh))
        counts, results = [], []
        for count, batch in self._batches():
            counts.append(count)
            results.append(self._jitted(params, model_state, batch))
            if len(results) > 2:
                # Dispatch runs ahead of the devices; without a bound batches fill the memory.
                jax.block_until_ready(results[-3])
        results = jax.device_get(results)
        return {
            name: sum(map(_total, (r[name] for r in results), counts)) / sum(counts)
            for name in results[0]
        }

    def _batches(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yields the number of real examples, and a batch padded with its first example."""
        for start in range(0, len(self._source), self._num_rows):
            count = min(self._num_rows, len(self._source) - start)
            rows = np.full(self._num_rows, start, np.int64)
            rows[:count] += np.arange(count)
            batch = dict(self._source.read(rows))
            batch["index"] = rows.astype(np.int32)
            batch["epoch"] = np.zeros(self._num_rows, np.int32)
            batch["weight"] = (np.arange(self._num_rows) < count).astype(np.float32)
            yield count, batch


def _total(mean: Any, count: int) -> float:
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
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Returns the metrics of `state` over the whole source; see `Evaluator`.

    Repeated calls with the same `eval_fn` and shapes don't compile again.

    >>> import optax
    >>> from adabatch_jax.data.sources import array_source
    >>> from adabatch_jax.training.step import weighted_mean
    >>> source = array_source({"x": np.arange(5, dtype=np.float32)})
    >>> def eval_fn(params, model_state, batch):
    ...     return {"x": weighted_mean(batch["x"], batch["weight"])}
    >>> state = TrainState.create(params={}, tx=optax.sgd(1.0))
    >>> evaluate(eval_fn, state, source, batch_size=2)
    {'x': 2.0}
    """
    return Evaluator(eval_fn, source, batch_size, mesh)(state)
