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
from jax.typing import ArrayLike

from adabatch_jax.data.augmentation import example_keys
from adabatch_jax.models.layers import BatchNorm
from adabatch_jax.models.next_tokens import next_token_metrics
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
    token_bytes: ArrayLike | None = None,
) -> tuple[dict[str, Any], dict[str, Any], LossFn, EvalFn]:
    """Returns what trains an image classifier, or a network of tokens, with softmax cross-entropy.

    Args:
      module: of images called as `module(images, mask=weight, keys=keys, train=True)`, with those of the
        keywords that its `__call__` takes; returns logits. One that doesn't take `train` is told
        by its `train()` and `eval()`, as flax's own Dropout and BatchNorm are. One of tokens is
        called as `module(tokens, positions=..., segments=...)`, with those that batches have, and
        with those of the other keywords that it takes.
      seed: the run's seed; augmentation and dropout depend on it, the epoch and the example.
      normalize: `images -> floating-point images`, by default uint8 / 255 in float32; images of
        another type need one.
      augment: `(keys, images) -> images`, before `normalize` and in training only.
      token_bytes: (vocabulary,), how many bytes of text each token stands for, 0 where it is none
        of the text; None: not known, and there is no metric "bytes_per_token".

    Returns:
      `(params, model_state, loss_fn, eval_fn)`: two nested dicts of arrays, the function that
      `make_train_step` takes, whose metrics are `{"accuracy"}`, and the one that `evaluate`
      takes, whose metrics are `{"loss", "accuracy"}`. Batches have "image" (batch, height,
      width, channels) and "label" (batch,), integers; a label that is no class and an image that
      isn't finite make the loss NaN. Batches of tokens have "tokens" instead, and their metrics are
      those of `next_token_metrics`. What `loss_properties` says belongs to `loss_fn`.

    >>> from adabatch_jax.models.registry import create
    >>> module = create("cnn_digits", image_shape=(8, 8, 1))
    >>> params, model_state, loss_fn, eval_fn = functions(module)
    >>> sorted(params), model_state
    (['conv1', 'conv2', 'head'], {})
    """
    graphdef, params, model_state = nnx.split(module, nnx.Param, ...)
    normalize = _unit_range if normalize is None else normalize

    def metrics_of(network, batch, train, **further):
        further["mask"] = batch["weight"]
        if "tokens" in batch:
            logits = _logits_of_tokens(network, batch, train, **further)
            return next_token_metrics(logits, batch, token_bytes, with_accuracy=not train)
        images = batch["image"]
        if train and augment is not None:
            images = augment(further["keys"], images)
        images = normalize(images)
        return _metrics(_called(network, images, train, **further), images, batch)

    def loss_of_seed(seed, params, model_state, batch, rng):
        del rng  # What is random belongs to the example, not to the step.
        # merge without copy would write into the caller's state.
        network = nnx.merge(graphdef, params, model_state, copy=True)
        metrics = metrics_of(network, batch, train=True, keys=example_keys(seed, batch))
        new_state = nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.Param)))
        return metrics.pop("loss"), (new_state, metrics)

    # The seed is an argument of the compiled step, so that runs with other seeds share it.
    loss_fn = jax.tree_util.Partial(loss_of_seed, np.uint32(checked_seed(seed)))

    def eval_fn(params, model_state, batch):
        network = nnx.merge(graphdef, params, model_state, copy=True)
        return metrics_of(network, batch, train=False)

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


def logits_of(module: nnx.Module) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """Returns `(params, model_state, tokens) -> logits` (batch, length, vocabulary), float32.

    >>> from adabatch_jax.models.registry import create
    >>> module = create("gpt_nano", num_classes=256)
    >>> params, model_state, _, _ = functions(module)
    >>> logits_of(module)(params, model_state, jnp.zeros((3, 10), jnp.int32)).shape
    (3, 10, 256)
    """
    graphdef, _, _ = nnx.split(module, nnx.Param, ...)

    def logits(params, model_state, tokens):
        network = nnx.merge(graphdef, params, model_state, copy=True)
        return _called(network, tokens, train=False).astype(jnp.float32)

    return logits


def _called(network: nnx.Module, inputs: jax.Array, train: bool, **further: Any) -> jax.Array:
    """The logits, from a call with the keywords that this network takes."""
    if not _takes(network, "train"):
        network.train() if train else network.eval()
    given = {"train": train, **further}
    return network(inputs, **{n: v for n, v in given.items() if _takes(network, n)})


def _takes(network: nnx.Module, keyword: str) -> bool:
    parameters = inspect.signature(network).parameters
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _logits_of_tokens(
    network: nnx.Module, batch: Mapping[str, jax.Array], train: bool, **further: Any
) -> jax.Array:
    packed = {name: batch[name] for name in ("positions", "segments") if name in batch}
    for name in packed:
        if not _takes(network, name):
            raise UsageError(
                f"the batches have {name!r}, several documents in a row, and the network's "
                "`__call__` takes none: it would look from one document into another."
            )
    return _called(network, batch["tokens"][:, :-1], train, **further, **packed)


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
