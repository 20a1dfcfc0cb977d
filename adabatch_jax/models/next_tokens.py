"""The loss of a network of tokens, and what else is told of it."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.loss_functions import weighted_mean


def next_token_metrics(
    logits: jax.Array,
    batch: Mapping[str, jax.Array],
    token_bytes: ArrayLike | None = None,
    with_accuracy: bool = True,
) -> dict[str, jax.Array]:
    """Returns means over the tokens that are to be predicted.

    Each row is the mean over its own targets, and rows count by `weight`: with "mask" give each
    the number of its targets as its weight, and every target counts the same.

    Args:
      logits: (batch, length, vocabulary), of what follows each input.
      batch: "tokens" (batch, length + 1), integers, whose first ones are the inputs and whose last
        ones the targets; "mask" (batch, length), 0 for targets that don't count, if there are such;
        "weight" (batch,).
      token_bytes: as in `functions`.
      with_accuracy: whether to count those that are the likeliest too, another pass over the logits.

    Returns:
      "loss", in nats; "bits_per_token"; where `token_bytes` are known "bytes_per_token"; maybe
      "accuracy". A row with a token that is none of the vocabulary has the loss NaN. Perplexity and
      bits per byte are made of means over all, see `with_text_figures`.

    >>> logits = jnp.zeros((1, 3, 4))
    >>> batch = {"tokens": jnp.array([[0, 1, 2, 3]]), "weight": jnp.ones(1)}
    >>> {name: float(mean) for name, mean in next_token_metrics(logits, batch).items()}
    {'loss': 1.386..., 'bits_per_token': 2.0, 'accuracy': 0.0}
    """
    tokens, weight = batch["tokens"], batch["weight"]
    if not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.ndim != 2:
        raise UsageError(
            f"the tokens must be integers (batch, length + 1), got {tokens.dtype}{tokens.shape}."
        )
    targets = tokens[:, 1:]
    if logits.shape[:2] != targets.shape:
        raise UsageError(
            f"the logits are of shape {logits.shape}, and there are targets of {targets.shape}."
        )
    counts = batch["mask"].astype(logits.dtype) if "mask" in batch else jnp.ones(targets.shape)

    def mean(values: jax.Array) -> jax.Array:
        total = counts.sum(1)
        return (values * counts).sum(1) / jnp.where(total > 0, total, 1)

    losses = mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))
    # -1 would be the last token of the vocabulary.
    is_sound = ((tokens >= 0) & (tokens < logits.shape[-1])).all(1)
    loss = weighted_mean(jnp.where(is_sound, losses, jnp.nan), weight)
    metrics = {"loss": loss, "bits_per_token": loss / math.log(2)}
    if token_bytes is not None:
        num_bytes = jnp.asarray(np.asarray(token_bytes, np.float32))[targets]
        metrics["bytes_per_token"] = weighted_mean(mean(num_bytes), weight)
    if with_accuracy:
        metrics["accuracy"] = weighted_mean(mean(logits.argmax(-1) == targets), weight)
    return metrics
