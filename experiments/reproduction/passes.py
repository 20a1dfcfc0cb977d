"""Seconds forward and backward, apart, as the paper times them."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adabatch_jax.config import TrainConfig
from adabatch_jax.data.mesh import batch_sharding, data_mesh, replicated
from adabatch_jax.data.row_layout import BatchLayout, row_table
from adabatch_jax.reporting.planning.plan_costs import resolved_layouts
from adabatch_jax.reporting.planning.timed_updates import configured_updates, image_data
from adabatch_jax.runs.configured_model import configured_model
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.accumulation import finish, sum_up
from adabatch_jax.training.gradients import gradient_function
from adabatch_jax.training.loss_functions import LossFn

REPEATS = 5
# Of a batch that is computed in many micro-batches, which take equally long.
_MOST_MICROBATCHES = 4
# What a pass depends on beside the batch size; arms that agree in it are measured once.
_RELEVANT = (
    "dataset", "model", "compute_dtype", "microbatch_size", "batchnorm_group_size",
    "batchnorm_reference_size", "data",
)  # fmt: skip

Cache = dict[tuple, tuple[float, float]]


def measure_passes(config: TrainConfig, plan: BatchPlan, cache: Cache) -> list[dict[str, Any]]:
    """Measures an arm's passes at each of its batch sizes.

    The forward pass is the compiled loss in training mode, augmentation included; the backward
    pass is what the compiled loss and gradient take longer. Both are medians over synthetic
    batches, after a first call that isn't counted, on all of this machine's devices.

    Args:
      config: the arm.
      plan: its plan.
      cache: measured before, by what decides the time; is added to.

    Returns:
      For each phase its "batch_size" and number of "updates", and the "forward_seconds" and
      "backward_seconds" of one update.
    """
    rows = []
    for phase in plan.phases:
        key = (*(getattr(config, name) for name in _RELEVANT), phase.batch_size)
        if key not in cache:
            cache[key] = _seconds_per_update(config, phase.batch_size)
        forward, backward = cache[key]
        rows.append(
            {
                "batch_size": phase.batch_size,
                "updates": phase.num_steps,
                "forward_seconds": forward,
                "backward_seconds": backward,
            }
        )
    return rows


def _seconds_per_update(config: TrainConfig, batch_size: int) -> tuple[float, float]:
    """Measures one update: seconds forward, and seconds backward."""
    spec = image_data(config)
    network = configured_model(config, spec)
    mesh = data_mesh() if jax.local_device_count() > 1 else None
    num_devices = 1 if mesh is None else mesh.size
    updates = dataclasses.replace(configured_updates(config, num_devices), limit_bytes=math.inf)
    layout = resolved_layouts(config, updates, batch_size).of(batch_size)
    num_measured = min(layout.num_microbatches, _MOST_MICROBATCHES)
    batch = _synthetic_batch(layout, num_measured, spec.image_shape, spec.num_classes)
    arguments = network.params, network.model_state, batch, jax.random.key(0)
    if mesh is not None:
        whole, spread = replicated(mesh), batch_sharding(mesh, microbatched=True)
        arguments = jax.device_put(arguments, (whole, whole, spread, whole))
    forward = _median_seconds(jax.jit(_forward(network.loss_fn)), arguments)
    both = _median_seconds(jax.jit(_forward_and_backward(network.loss_fn)), arguments)
    scale = layout.num_microbatches / num_measured
    return forward * scale, max(both - forward, 0.0) * scale


def _synthetic_batch(
    layout: BatchLayout, num_microbatches: int, shape: tuple[int, int, int], num_classes: int
) -> dict[str, np.ndarray]:
    """Noise in the shape of a batch: arrays (K, m, ...), padded as in training."""
    random = np.random.default_rng(0)
    rows = row_table(layout)[:num_microbatches]
    return {
        "image": random.integers(0, 256, (*rows.shape, *shape), np.uint8),
        "label": random.integers(0, num_classes, rows.shape, np.int32),
        "index": np.maximum(rows, 0).astype(np.int32),
        "epoch": np.zeros(rows.shape, np.int32),
        "weight": (rows >= 0).astype(np.float32),
    }


def _forward(loss_fn: LossFn) -> Callable[..., Any]:
    """The loss of one micro-batch after another, and the model state they leave."""

    def forward(params, model_state, batch, rng):
        def next_one(state, microbatch):
            loss, (state, _) = loss_fn(params, state, microbatch, rng)
            return state, loss

        if batch["weight"].shape[0] == 1:
            return next_one(model_state, jax.tree.map(lambda leaf: leaf[0], batch))
        return lax.scan(next_one, model_state, batch)

    return forward


def _forward_and_backward(loss_fn: LossFn) -> Callable[..., Any]:
    """The gradients too, added up over the micro-batches as in training."""

    def forward_and_backward(params, model_state, batch, rng):
        grad_fn = gradient_function(loss_fn, params)
        if batch["weight"].shape[0] == 1:
            return grad_fn(model_state, jax.tree.map(lambda leaf: leaf[0], batch), rng)
        sums = sum_up(grad_fn, params, model_state, batch, rng, sequential=True)
        return finish(sums, params, model_state, sequential=True)

    return forward_and_backward


def _median_seconds(function: Callable[..., Any], arguments: tuple) -> float:
    arguments = jax.tree.map(jnp.asarray, arguments)  # on the device before the clock starts
    jax.block_until_ready(function(*arguments))  # compiles
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
