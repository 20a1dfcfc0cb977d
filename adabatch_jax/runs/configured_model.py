"""The network of a configured run: one of ours by its name, or a user's own."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from adabatch_jax.config.declarations import declarations, flattened
from adabatch_jax.config.gpt_settings import GPTSettings
from adabatch_jax.config.own_functions import is_reference
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.data.abstract_arrays import abstract_batch
from adabatch_jax.data.augmentation import normalize, random_crop, random_flip
from adabatch_jax.data.datasets.known_datasets import DatasetSpec
from adabatch_jax.models import create, functions, loss_properties
from adabatch_jax.models.own_models import OwnFunctions, make_own
from adabatch_jax.models.pure_functions import logits_of, probabilities_of
from adabatch_jax.models.registry import is_of_tokens
from adabatch_jax.system.errors import UsageError, one_line
from adabatch_jax.training.evaluation import EvalFn
from adabatch_jax.training.loss_functions import LossFn

# What a user's own function decides itself; and what one does that brings its own loss.
_OF_BATCHNORM = ("batchnorm_group_size", "batchnorm_reference_size")
_OF_OURS = (*_OF_BATCHNORM, "compute_dtype", *(f"gpt.{name}" for name in declarations(GPTSettings)))
_OF_IMAGES = ("data.crop_padding", "data.flip", "data.mean", "data.std")


@dataclasses.dataclass(frozen=True)
class ConfiguredModel:
    """A network with its first weights.

    Attributes:
      eval_fn: None where nothing is to be evaluated.
      properties: the arguments of `fit` that belong to `loss_fn`.
      module: None where a user's own functions take its place.
      probabilities: `(params, model_state, images) -> probabilities` of a module of images.
    """

    params: Any
    model_state: Any
    loss_fn: LossFn
    eval_fn: EvalFn | None
    properties: dict[str, Any] = dataclasses.field(default_factory=dict)
    module: nnx.Module | None = None
    probabilities: Callable[[Any, Any, jax.Array], jax.Array] | None = None


def configured_model(config: TrainConfig, spec: DatasetSpec) -> ConfiguredModel:
    """The network that the settings name, for data of which this is known.

    Raises:
      UsageError: there is no such network, or it can't take the dataset's examples.
    """
    if is_reference(config.model):
        _refuse(config, _OF_OURS, f"{config.model} is your own network, which decides that itself")
        given = {"num_classes": spec.num_classes, "image_shape": spec.image_shape}
        if spec.text is not None:
            given = {"num_classes": spec.num_classes, "sequence_length": spec.text.sequence_length}
        made = make_own(config.model, **given, seed=config.seed)
        if isinstance(made, OwnFunctions):
            does = "brings a loss of its own, which does to a batch whatever is to be done to it"
            _refuse(config, _OF_IMAGES, f"{config.model} {does}")
            return ConfiguredModel(*made)
        if spec.text is not None:
            _check_own_of_tokens(config.model, spec, made)
            return _of_tokens(config, spec, made)
        network = _of_images(config, spec, made)
        _check_own(config.model, spec, network)
        return network
    if is_of_tokens(config.model):
        return _of_tokens(config, spec, _made_of_tokens(config, spec))
    _check_images(config, spec)
    module = create(
        config.model, spec.num_classes, spec.image_shape, config.seed, config.batchnorm_group_size,
        config.compute_dtype, config.batchnorm_reference_size, **config.gpt.chosen,
    )  # fmt: skip
    return _of_images(config, spec, module)


def _of_tokens(config: TrainConfig, spec: DatasetSpec, module: nnx.Module) -> ConfiguredModel:
    told = None if spec.text is None else spec.text.bytes_per_token
    token_bytes = None if told is None else np.full(spec.num_classes, told, np.float32)
    made = functions(module, seed=config.seed, token_bytes=token_bytes)
    return ConfiguredModel(*made, loss_properties(module), module)


def _made_of_tokens(config: TrainConfig, spec: DatasetSpec) -> nnx.Module:
    _refuse(config, _OF_BATCHNORM, f"{config.model} has no BatchNorm")
    _refuse(config, _OF_IMAGES, f"{config.model} takes tokens, and no images")
    if spec.image_shape is not None or not spec.num_classes:
        raise UsageError(
            f"model: {config.model} takes tokens, and {spec.name} has images or doesn't tell how many "
            'tokens there are: its sources need arrays "tokens", and an attribute num_classes.'
        )
    return create(
        config.model, spec.num_classes, seed=config.seed, dtype=config.compute_dtype,
        **config.gpt.chosen,
    )  # fmt: skip


def _of_images(config: TrainConfig, spec: DatasetSpec, module: nnx.Module) -> ConfiguredModel:
    _check_images(config, spec)
    normalized = functools.partial(normalize, mean=spec.mean, std=spec.std)
    made = functions(module, seed=config.seed, normalize=normalized, augment=_augmentation(config))
    probabilities = probabilities_of(module, normalized)
    return ConfiguredModel(*made, loss_properties(module), module, probabilities)


def _check_images(config: TrainConfig, spec: DatasetSpec) -> None:
    if spec.text is not None:
        raise UsageError(
            f"model: {config.model} takes images, and {spec.name} is a text; give a network of tokens, "
            "such as --model gpt_nano."
        )
    if spec.image_shape is None or not spec.num_classes or not spec.mean:
        raise UsageError(
            f"model: {config.model} takes uint8 images and labels, of which {spec.name} tells too "
            'little: its sources need arrays "image" and "label", and an attribute num_classes.'
        )


def _refuse(config: TrainConfig, names: Collection[str], why: str) -> None:
    """Raises a UsageError where one of these settings was given."""
    given, defaults = flattened(config.to_dict()), flattened(TrainConfig().to_dict())
    for name in names:
        if given[name] != defaults[name]:
            raise UsageError(f"{name}: {why}.")


def _check_own_of_tokens(reference: str, spec: DatasetSpec, module: nnx.Module) -> None:
    """Raises a UsageError where a module can't take tokens, or gives other than their logits."""
    shape = (2, spec.text.sequence_length)
    _, params, model_state = nnx.split(module, nnx.Param, ...)
    try:
        tokens = jax.ShapeDtypeStruct(shape, np.int32)
        returned = jax.eval_shape(logits_of(module), params, model_state, tokens).shape
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"model: {reference} can't take tokens of shape {shape}: {type(error).__name__} "
            f"({one_line(error)})."
        ) from error
    if returned != (*shape, spec.num_classes):
        raise UsageError(
            f"model: {reference} makes of tokens of shape {shape} an array of shape {returned}; it "
            f"must be logits of shape {(*shape, spec.num_classes)}."
        )


def _check_own(reference: str, spec: DatasetSpec, network: ConfiguredModel) -> None:
    """Raises a UsageError where a module can't take the images, or gives other than its logits."""
    examples = {
        "image": jax.ShapeDtypeStruct(spec.image_shape, jnp.dtype(spec.image_type)),
        "label": jax.ShapeDtypeStruct((), np.int32),
    }
    batch = abstract_batch(examples, (2,))
    shown = "x".join(map(str, spec.image_shape))
    weights = network.params, network.model_state
    try:
        returned = jax.eval_shape(network.probabilities, *weights, batch["image"]).shape
        expected = (2, spec.num_classes)
        if returned != expected:
            raise UsageError(
                f"model: {reference} makes of 2 images of {shown} an array of shape {returned}, and "
                f"{spec.num_classes} classes need logits of shape {expected}."
            )
        jax.eval_shape(network.loss_fn, *weights, batch, jax.eval_shape(jax.random.key, 0))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"model: {reference} can't take images of {shown}: {type(error).__name__} "
            f"({one_line(error)})."
        ) from error


def _augmentation(config: TrainConfig) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """The configured random changes of training images, or None."""
    padding, flip = config.data.crop_padding, config.data.flip

    def augment(keys, images):
        if padding:
            images = random_crop(keys, images, padding)
        return random_flip(keys, images) if flip else images

    return augment if padding or flip else None
