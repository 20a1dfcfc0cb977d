"""The optimizer of a configured run."""

from typing import Any

import jax
import optax
import optax.contrib

from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.models.registry import is_of_tokens

# Updates of a matrix by muon are then as large as those by adamw, whatever its shape, and one rate
# does for both (Liu et al. 2025, section 2.2).
_MUON_RMS = 0.2

# Of a GPT, what isn't a matrix between features: embeddings, and the head.
_NOT_MUONS = {"wte", "wpe", "lm_head"}


def make_optimizer(
    config: TrainConfig, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """The configured optimizer.

    sgd adds the decay to the gradient before the momentum, as PyTorch and the paper's code do.
    muon is `optax.contrib.muon` with updates of adamw's size; its adamw has Nesterov's momentum too.
    Gradients are clipped before all else.
    """
    tx = _unclipped(config, learning_rate)
    if config.clip_norm is None:  # a chain of one would give the state's arrays other names
        return tx
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)


def _unclipped(config: TrainConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    decay, decays_all = config.weight_decay, _decays_all(config)
    mask = None if decays_all else _matrices
    if config.optimizer == "sgd":
        momentum = config.momentum or None
        return optax.chain(
            optax.add_decayed_weights(decay, mask), optax.sgd(learning_rate, momentum)
        )
    beta1, beta2, epsilon = (
        default if given is None else given
        for given, default in (
            (config.beta1, 0.9), (config.beta2, 0.999), (config.epsilon, 1e-8),
        )
    )  # fmt: skip
    if config.optimizer == "adamw":
        return optax.adamw(learning_rate, beta1, beta2, epsilon, weight_decay=decay, mask=mask)
    return optax.contrib.muon(
        learning_rate,
        beta=0.95 if config.beta1 is None else beta1,
        eps=epsilon,
        weight_decay=decay,
        adam_b1=beta1,
        adam_b2=beta2,
        adam_weight_decay=decay if decays_all else 0.0,
        muon_weight_dimension_numbers=_muon_axes,
        consistent_rms=_MUON_RMS,
    )


def _decays_all(config: TrainConfig) -> bool:
    if config.decay_on is None:
        return not is_of_tokens(config.model)
    return config.decay_on == "all"


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _muon_axes(params: Any) -> Any:
    """For each array that muon moves how it is a matrix, for others None."""

    def axes(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        names = {getattr(entry, "key", None) for entry in path}
        is_muons = leaf.ndim == 2 and not names & _NOT_MUONS
        return optax.contrib.MuonDimensionNumbers() if is_muons else None

    return jax.tree.map_with_path(axes, params)
