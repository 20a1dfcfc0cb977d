"""What a function of a batch gives where it must give the same: the trial of what sees padding.

A program of the forward pass runs on the same examples, of which half weigh 0: with the first
example repeated in their place, then with other examples there and all weights doubled. A function
that takes nothing but means weighted by `batch["weight"]` gives the same twice; what it counts may
double. Where all examples fare alike, as they do with weights that begin at zero, that shows
nothing: so it is tried again with other halves and perturbed parameters.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adabatch_jax.training.update import Batch

# Rows that weigh nothing add zeros, and a factor of two rounds nothing: more than a few roundings
# of the type that a number has are a difference.
_LEAST_TOLERANCE, _ROUNDINGS = 3e-5, 8
# A metric that has one value in all draws, as an accuracy where no prediction is right, gets more
# of them.
_FEWEST_DRAWS, _MOST_DRAWS = 4, 12
# Weights so large that a sum of them less one, as of an unbiased variance, is the sum.
_LARGE = 2.0**20


class Variant(NamedTuple):
    """One of the ways in which `varied` and `perturbed` change what a function is given.

    Attributes:
      draw: which of the examples weigh something, and how parameters are perturbed; 0: not at all.
      is_repeated: one example is in all rows of weight 0, else others are.
      factor: of all weights.
    """

    draw: Any = np.int32(0)
    is_repeated: Any = np.bool_(True)
    factor: Any = np.float32(1)


class Verdict(NamedTuple):
    """What a trial found.

    Attributes:
      fault: what a function does, and what would be right; None if nothing was seen.
      is_decided: at least two examples with finite values could be compared.
      is_final: and the loss and all metrics had more than one value.
    """

    fault: str | None
    is_decided: bool
    is_final: bool


def tried(program: Callable[[Variant], Any]) -> Verdict:
    """Compares what a program computes in several variants: a dict, perhaps of a "loss"."""
    firsts, have_varied = None, [False]
    for draw in range(_MOST_DRAWS):
        if draw >= _FEWEST_DRAWS and (firsts is None or all(have_varied)):
            break
        repeated = Variant(np.int32(draw))
        doubled = Variant(repeated.draw, np.bool_(False), np.float32(2))
        one, two = jax.device_get((program(repeated), program(doubled)))
        if not _are_finite_alike(one, two):
            continue
        fault = _fault(program, one, two, doubled) if _changes(one, two) else None
        if fault is not None or one["num_examples"] < 2:
            return Verdict(fault, False, False)
        values = jax.tree.leaves((one.get("loss"), one["metrics"]))
        if firsts is None:
            firsts, have_varied = values, [False] * len(values)
        have_varied = [
            had or bool((value != first).any())
            for had, value, first in zip(have_varied, map(np.asarray, values), firsts)
        ]
    is_decided = firsts is not None
    return Verdict(None, is_decided, is_decided and all(have_varied))


def _fault(program: Callable[[Variant], Any], one: Any, two: Any, doubled: Variant) -> str | None:
    """Which of the changes from the one to the other are wrong: those of the rows come first."""

    def computed(factor: float) -> Any:
        return jax.device_get(program(doubled._replace(factor=np.float32(factor))))

    others = computed(1)
    moved = " and params perturbed" if doubled.draw else ""
    for change in _changes(one, others).values():
        return (
            f"sees padding: with other examples in rows of weight 0{moved} {change}; give what is "
            'computed over a batch mask=batch["weight"], a mean as weighted_mean(values, '
            'batch["weight"])'
        )
    # Whole numbers are counts, of what the examples weigh perhaps, and no means.
    whole = functools.partial(jax.tree.map, _unless_whole)
    changes = _changes(whole(others), whole(two))
    if changes:
        large, larger = computed(_LARGE), computed(2 * _LARGE)
        if _are_finite_alike(large, larger):
            remaining = _changes(large, larger)
            changes = {name: text for name, text in changes.items() if name in remaining}
    for change in changes.values():
        return (
            f"sees padding: with all weights doubled{moved} {change}; micro-batches are combined "
            "by their sums of weights, so how large all weights are must not matter: give a mean "
            'as weighted_mean(values, batch["weight"]), which divides by their sum, and a count as '
            "an integer"
        )
    return None


def outputs_of(
    function: Callable[[Any, Batch], dict[str, Any]], variant: Variant, params: Any, batch: Batch
) -> dict[str, Any]:
    """What `function(params, batch)` gives in a variant, to be traced: as numbers, keys too."""
    outputs = function(perturbed(params, variant), varied(batch, variant))
    return {**_plain(outputs), "num_examples": jnp.sum(batch["weight"] > 0)}


def varied(batch: Batch, variant: Variant) -> Batch:
    """The batch with half of its examples in its first rows, and the others weigh 0."""
    rest = dict(batch)
    weight = rest.pop("weight")
    num_rows, number = weight.shape[0], jnp.maximum(jnp.sum(weight > 0), 1)
    order, row = jnp.argsort(~(weight > 0), stable=True), jnp.arange(num_rows)
    num_kept = (number + 1) // 2
    is_kept, shift = row < num_kept, variant.draw * num_kept
    # Shifted once more in each draw: else one row might have the first example in all of them. With
    # a single example others are found where examples weigh 0 themselves.
    others = (row + shift + variant.draw) % jnp.where(number < 2, num_rows, number)
    kept = jnp.where(is_kept, row, 0) + shift
    is_other = ~is_kept & ~variant.is_repeated
    source = order[jnp.where(is_other, others, kept % number)]
    rest = jax.tree.map(lambda leaf: jnp.asarray(leaf)[source], rest)
    weight = weight[source] * variant.factor.astype(weight.dtype)
    return {**rest, "weight": jnp.where(is_kept, weight, 0)}


def perturbed(params: Any, variant: Variant) -> Any:
    """Parameters as they are in draw 0, then in turn times 0.5 to 1.5 and times -2 to 2.

    The latter predict anything, the former are positive where parameters must be. Those that are 0
    become -0.05 to 0.05.
    """
    leaves, structure = jax.tree.flatten(params)

    def noise(shape, number):
        """A hash of where an entry is, -1 to 1: generators take long to compile."""
        hashed = variant.draw.astype(jnp.uint32) * np.uint32(0x9E3779B1) + np.uint32(number)
        for axis in range(len(shape) + 1):
            hashed = (hashed ^ (hashed >> 15)) * np.uint32(0x85EBCA6B)
            hashed = (hashed ^ (hashed >> 13)) * np.uint32(0xC2B2AE35)
            if axis < len(shape):
                hashed = hashed + lax.broadcasted_iota(jnp.uint32, shape, axis)
        return hashed.astype(jnp.float32) * np.float32(2.0**-31) - 1

    def shaken(number, leaf):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        by = noise(leaf.shape, number).astype(leaf.dtype)
        moved = leaf * jnp.where(variant.draw % 2 == 1, 1 + by / 2, 2 * by)
        return jnp.where(variant.draw == 0, leaf, jnp.where(leaf == 0, by / 20, moved))

    return structure.unflatten(shaken(number, leaf) for number, leaf in enumerate(leaves))


def _plain(outputs: Any) -> Any:
    """Outputs as arrays of numbers, random keys too."""

    def numbers(leaf):
        leaf = jnp.asarray(leaf)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(numbers, outputs)


def _unless_whole(array: np.ndarray) -> np.ndarray:
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else np.zeros_like(array)


def _are_finite_alike(one: Any, two: Any) -> bool:
    """Whether the loss, or without one a metric, is finite, and the same numbers are in both."""
    told = jax.tree.leaves(one.get("loss", one["metrics"]))
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return any(np.isfinite(value).all() for value in told) and all(
        np.array_equal(np.isfinite(a), np.isfinite(b)) for a, b in pairs
    )


def _changes(before: Any, after: Any) -> dict[str, str]:
    """By name, the outputs that aren't the same, and how they change."""
    changes, others = {}, jax.tree.leaves(after)
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
            name = _name(path)
            at = np.where(is_same, -1, np.where(np.isnan(gap), np.inf, gap)).argmax()
            changes[name] = f"{name} changes from {one.flat[at]:.6g} to {other.flat[at]:.6g}"
    return changes


def _name(path: tuple[Any, ...]) -> str:
    kind, rest = path[0].key, path[1:]
    if kind == "model_state":
        return kind + jax.tree_util.keystr(rest)
    return f"the {kind}" if kind == "loss" else f"the metric {jax.tree_util.keystr(rest)}"
