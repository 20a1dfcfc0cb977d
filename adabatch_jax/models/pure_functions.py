"""From an nnx module to the plain functions and pytrees that training works with."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from adabatch_jax.data.augmentation import example_keys
from adabatch_jax.models.layers import BatchNorm
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.quantities import checked_seed
from adabatch_jax.training.evaluation import EvalFn
from adabatch_jax.training.loss_functions import LossFn, weighted_mean

Images = jax.Array


def functions(
    module: nnx.Module,
    *,
    seed: int = 0,
    normalize: Callable[[Images], Images] | None = None,
    augment: Callable[[jax.Array, Images], Images] | None = None,
) -> tuple[dict[str, Any], dict[str, Any], LossFn, EvalFn]:
    """Returns what trains an image classifier with softmax cross-entropy.

    Args:
      module: called as `module(images, mask=weight, keys=keys, train=True)`, with those of the
        keywords that its `__call__` takes; returns logits. One that doesn't take `train` is told
        by its `train()` and `eval()`, as flax's own Dropout and BatchNorm are.
      seed: the run's seed; augmentation and dropout depend on it, the epoch and the example.
      normalize: `images -> floating-point images`, by default uint8 / 255 in float32; images of
        another type need one.
      augment: `(keys, images) -> images`, before `normalize` and in training only.

    Returns:
      `(params, model_state, loss_fn, eval_fn)`: two nested dicts of arrays, the function that
      `make_train_step` takes, whose metrics are `{"accuracy"}`, and the one that `evaluate`
      takes, whose metrics are `{"loss", "accuracy"}`. Batches have "image" (batch, height,
      width, channels) and "label" (batch,), integers; a label that is no class and an image that
      isn't finite make the loss NaN. What `loss_properties` says belongs to `loss_fn`.

    >>> from adabatch_jax.models.registry import create
    >>> module = create("cnn_digits", image_shape=(8, 8, 1))
    >>> params, model_state, loss_fn, eval_fn = functions(module)
    >>> sorted(params), model_state
    (['conv1', 'conv2', 'head'], {})
    """
    graphdef, params, model_state = nnx.split(module, nnx.Param, ...)
    normalize = _unit_range if normalize is None else normalize

    def loss_of_seed(seed, params, model_state, batch, rng):
        del rng  # What is random belongs to the example, not to the step.
        keys, images = example_keys(seed, batch), batch["image"]
        if augment is not None:
            images = augment(keys, images)
        # merge without copy would write into the caller's state.
        network = nnx.merge(graphdef, params, model_state, copy=True)
        images = normalize(images)
        logits = _called(network, images, mask=batch["weight"], keys=keys, train=True)
        metrics = _metrics(logits, images, batch)
        new_state = nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.Param)))
        return metrics.pop("loss"), (new_state, metrics)

    # The seed is an argument of the compiled step, so that runs with other seeds share it.
    loss_fn = jax.tree_util.Partial(loss_of_seed, np.uint32(checked_seed(seed)))

    def eval_fn(params, model_state, batch):
        network = nnx.merge(graphdef, params, model_state, copy=True)
        images = normalize(batch["image"])
        logits = _called(network, images, mask=batch["weight"], train=False)
        return _metrics(logits, images, batch)

    return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state), loss_fn, eval_fn


def probabilities_of(
    module: nnx.Module, normalize: Callable[[Images], Images]
) -> Callable[[Any, Any, Images], jax.Array]:
    """Returns `(params, model_state, images) -> probabilities` (batch, classes) of a classifier.

    >>> from adabatch_jax.models.registry import create
    >>> module = create("cnn_digits", image_shape=(8, 8, 1))
    >>> params, model_state, _, _ = functions(module)
    >>> images = jnp.zeros((3, 8, 8, 1), jnp.uint8)
    >>> probabilities_of(module, _unit_range)(params, model_state, images).shape
    (3, 10)
    """
    graphdef, _, _ = nnx.split(module, nnx.Param, ...)

    def probabilities(params, model_state, images):
        network = nnx.merge(graphdef, params, model_state, copy=True)
        logits = _called(network, normalize(images), train=False)
        return jax.nn.softmax(logits.astype(jnp.float32))

    return probabilities


def _called(network: nnx.Module, images: Images, train: bool, **further: Any) -> jax.Array:
    """The logits, from a call with the keywords that this network takes."""
    parameters = inspect.signature(network).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    if not takes_all and "train" not in names:
        network.train() if train else network.eval()
    given = {"train": train, **further}
    return network(images, **{n: v for n, v in given.items() if takes_all or n in names})


def loss_properties(module: nnx.Module) -> dict[str, Any]:
    """What `make_train_step` and `fit` may know of the loss of `functions(module)`.

    Returns:
      The arguments "sequential_model_state", True because BatchNorm's running statistics move
      group by group in the order of the rows, and "independent_groups": None for a BatchNorm
      whose group is the whole batch, and for a network that isn't made of this package's modules
      only; what a module of yours does with other rows only you know.

    >>> from adabatch_jax.models.registry import create
    >>> loss_properties(create("cnn_fashion", image_shape=(8, 8, 1), group_size=12))
    {'sequential_model_state': True, 'independent_groups': 12}
    """
    modules = [part for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Module)]
    here = __name__.rpartition(".")[0] + "."
    known = (type(part).__module__.startswith(here) for part in modules)
    sizes = [part.group_size for part in modules if isinstance(part, BatchNorm)]
    rows = None if None in sizes or not all(known) else math.lcm(*sizes)
    return {"sequential_model_state": True, "independent_groups": rows}


def _metrics(
    logits: jax.Array, images: Images, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    labels = batch["label"]
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:1]:
        raise UsageError(
            f"the labels must be one integer for each image, got {labels.dtype}{labels.shape}."
        )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    # -1 would be the last class.
    is_sound = (labels >= 0) & (labels < logits.shape[-1])
    if not jnp.issubdtype(batch["image"].dtype, jnp.integer):
        # XLA's maximum over several pixels leaves NaN out on a CPU.
        is_sound &= jnp.isfinite(images).all((1, 2, 3))
    losses = jnp.where(is_sound, losses, jnp.nan)
    hits = logits.argmax(-1) == labels
    return {
        "loss": weighted_mean(losses, batch["weight"]),
        "accuracy": weighted_mean(hits, batch["weight"]),
    }


def _unit_range(images: jax.Array) -> jax.Array:
    if images.dtype != jnp.uint8:
        raise UsageError(
            f"the images are of type {images.dtype}, and by default only uint8 are divided by 255; "
            "give `functions` a `normalize` that makes of them what the network is to see."
        )
    return images.astype(jnp.float32) / 255
