"""Beginning a run with the weights of another one, or of a file (fine-tuning)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adabatch_jax.config.own_functions import is_reference
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.data.datasets.known_datasets import DatasetSpec
from adabatch_jax.models.torch_weights import from_torch_names
from adabatch_jax.runs.configured_model import ConfiguredModel, configured_model
from adabatch_jax.runs.weights import is_of_network, weights_of
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.weights_digest import is_key, named_arrays

_SETTING = "init_from"


@dataclasses.dataclass(frozen=True)
class GivenWeights:
    """What a run began with.

    Attributes:
      source: the run's folder, or the file.
      digest: of its arrays.
      anew: the names of those that weren't taken, of the last layer.
      note: why not, or what else is to be told.
    """

    source: str
    digest: str
    anew: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        text = f"the run begins with the weights of {self.source} (digest {self.digest[:12]})"
        return f"{text}; {self.note}" if self.note else text

    def to_dict(self) -> dict[str, Any]:
        """The weights among a run's decisions, as JSON values."""
        decision = {"kind": "init_from", "step": 0, "from": self.source, "digest": self.digest}
        return decision | {"anew": list(self.anew)}


def with_given_weights(
    config: TrainConfig, spec: DatasetSpec, network: ConfiguredModel
) -> tuple[ConfiguredModel, GivenWeights]:
    """The network with the weights that `init_from` names, and what became of them.

    The last layer, whatever of the network depends on the number of classes, begins anew where
    there are others: another number, or other names where both are known.

    Raises:
      UsageError: there are no such weights, or they don't fit; the sentence names the first that
        doesn't.
      StorageError, RestoreError: as `weights_of`.
    """
    weights = weights_of(config.init_from, _SETTING)
    theirs, ours = dict(weights.arrays), _weights(network)
    if (
        not any(map(is_of_network, theirs))
        and network.module is not None
        and not is_reference(config.model)
    ):
        theirs = from_torch_names(network.module, theirs)
    differing = [n for n in {**ours, **theirs} if _shape(ours, n) != _shape(theirs, n)]
    class_names, num_classes = weights.about.get("class_names"), weights.about.get("num_classes")
    has_other_names = None not in (class_names, spec.class_names) and (
        tuple(class_names) != spec.class_names
    )
    last = _last_layer(config, spec, ours) if differing or has_other_names else []
    misfits = [name for name in differing if name not in last or name not in theirs]
    if misfits:
        raise UsageError(_misfit_text(config, misfits, ours, theirs))
    anew, note = tuple(last), ""
    if anew:
        there = f"{num_classes or 'another number of'} classes there, {spec.num_classes} here"
        why = there if differing else "the classes have other names"
        note = f"{', '.join(anew)} begin anew: {why}"
    elif has_other_names:
        note = f"the classes have other names, but nothing in {config.model} depends on how many"
    taken = {
        name: leaf if name in anew else _as_leaf(theirs[name], leaf) for name, leaf in ours.items()
    }
    tree = {"params": network.params, "model_state": network.model_state}
    # Keys stay the run's own, and are no part of `ours`.
    leaves = [taken.get(name, leaf) for name, leaf in named_arrays(tree).items()]
    changed = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    return dataclasses.replace(network, **changed), GivenWeights(
        config.init_from, weights.digest, anew, note
    )


def _weights(network: ConfiguredModel) -> dict[str, Any]:
    tree = {"params": network.params, "model_state": network.model_state}
    return {name: leaf for name, leaf in named_arrays(tree).items() if not is_key(leaf)}


def _last_layer(config: TrainConfig, spec: DatasetSpec, ours: Mapping[str, Any]) -> list[str]:
    """The arrays whose shape depends on the number of classes."""
    if spec.num_classes is None:
        return []
    try:
        wider = configured_model(
            config, dataclasses.replace(spec, num_classes=spec.num_classes + 1)
        )
    except UsageError:  # a user's own, for this number of classes only
        return []
    others = _weights(wider)
    return [name for name in ours if _shape(ours, name) != _shape(others, name)]


def _shape(arrays: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    return np.shape(arrays[name]) if name in arrays else None


def _as_leaf(array: np.ndarray, leaf: Any) -> jax.Array:
    return jnp.asarray(array, jnp.result_type(leaf))


def _misfit_text(
    config: TrainConfig, names: list[str], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> str:
    def shown(arrays: Mapping[str, Any]) -> str:
        shape = _shape(arrays, names[0])
        return "absent" if shape is None else f"{list(shape)}"

    positions = next((name for name in names if name.endswith("wpe.embedding")), None)
    if positions in theirs and positions in ours:
        there, here = _shape(theirs, positions)[0], _shape(ours, positions)[0]
        return (
            f"{_SETTING}: {config.init_from!r} has {there:,} learned positions, and {config.model} "
            f"{here:,} here; give --gpt.num-positions {there}, which sequences can't be longer than, "
            "or begin that run with more, or with --gpt.positions rotary."
        )
    rest = f", and {len(names) - 1} more don't fit either" if len(names) > 1 else ""
    return (
        f"{_SETTING}: the weights of {config.init_from!r} don't fit {config.model}: {names[0]} is "
        f"{shown(theirs)} there and {shown(ours)} here{rest}."
    )
