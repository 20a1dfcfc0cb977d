"""Weights from PyTorch and back, as numpy arrays by PyTorch's names. Needs no torch.

The networks' attributes mirror the names of the official code and of torchvision: a number joins
the segment before it, so `layer1.0.downsample.1.running_var` is `layer1_0.downsample_1.var`.
"""

import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from adabatch_jax.system.errors import UsageError, did_you_mean

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# From PyTorch's axes to ours, by rank: OIHW -> HWIO and (out, in) -> (in, out).
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def load_torch_weights(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets a network's parameters and BatchNorm statistics to those of its PyTorch original.

    The originals are torchvision's networks and those of the official code for CIFAR; a
    `state_dict()` or an opened `.npz` file is such a mapping as well. Values are cast to the
    network's float32.

    Args:
      model: changed in place, or not at all if anything doesn't fit.
      arrays: by PyTorch's name, in PyTorch's layout. `module.` segments, which DataParallel
        adds, are left out, and `num_batches_tracked` is ignored.

    Raises:
      UsageError: missing or unknown names, two names for one array, another shape, or what
        isn't numbers.

    >>> from adabatch_jax.models import create
    >>> theirs = to_torch_arrays(create("resnet20_cifar", seed=1))
    >>> model = create("resnet20_cifar", seed=2)
    >>> load_torch_weights(model, {f"module.{name}": array for name, array in theirs.items()})
    >>> bool((model.fc.bias[...] == theirs["fc.bias"]).all())
    True
    """
    variables = {_torch_name(path): (path, variable) for path, variable in _weights(model)}
    given = _without_wrappers(arrays)
    _check_names(given, variables)
    loaded = []
    for name, (path, variable) in variables.items():
        old = np.asarray(variable[...])
        new = _numbers(given[name], arrays[given[name]])
        shape = old.transpose(_inverse(old.ndim)).shape
        if new.shape != shape:
            raise UsageError(
                f"the array {given[name]!r} has the shape {new.shape}, but the network's is "
                f"{shape}."
            )
        value = jnp.asarray(new.transpose(_AXES[new.ndim]), old.dtype)
        loaded.append((path, variable.replace(value)))
    nnx.update(model, nnx.from_flat_state(loaded))


def to_torch_arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns a network's parameters and BatchNorm statistics as PyTorch wants them.

    What training has left in a `TrainState` goes back into the network first, by
    `nnx.update(model, state.params, state.model_state)`. PyTorch takes the arrays with

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        network.load_state_dict(tensors)

    `num_batches_tracked` isn't among them: it only counts, and PyTorch fills it in itself.

    Returns:
      New arrays by PyTorch's names, in PyTorch's layout.

    >>> from adabatch_jax.models import create, functions
    >>> model = create("resnet20_cifar")
    >>> params, model_state, _, _ = functions(model)
    >>> params["fc"]["bias"] += 1  # Training.
    >>> before = to_torch_arrays(model)["fc.bias"]
    >>> nnx.update(model, params, model_state)
    >>> arrays = to_torch_arrays(model)
    >>> arrays["layer2.0.downsample.0.weight"].shape
    (32, 16, 1, 1)
    >>> bool((arrays["fc.bias"] == before + 1).all())
    True
    """
    arrays = {}
    for path, variable in _weights(model):
        ours = np.asarray(variable[...])
        # PyTorch shares the memory of what it is given, so these must be copies.
        arrays[_torch_name(path)] = np.array(ours.transpose(_inverse(ours.ndim)), order="C")
    return arrays


def from_torch_names(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays by the names and in the layout of the network's parameters and model state.

    Whether they fit the network is for the caller to say: names that it doesn't have stay.

    >>> from adabatch_jax.models import create
    >>> model = create("resnet20_cifar")
    >>> from_torch_names(model, {"module.fc.weight": np.zeros((3, 64))})["params.fc.kernel"].shape
    (64, 3)
    """
    paths = {_torch_name(path): (path, variable) for path, variable in _weights(model)}
    found = {}
    for name, given in _without_wrappers(arrays).items():
        array = np.asarray(arrays[given])
        if name in paths:
            path, variable = paths[name]
            room = "params" if isinstance(variable, nnx.Param) else "model_state"
            given, array = ".".join((room, *path)), array.transpose(_AXES.get(array.ndim))
        found[given] = array
    return found


def _weights(model: nnx.Module) -> Iterable[tuple[tuple[str, ...], nnx.Variable]]:
    return nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def _torch_name(path: tuple[str, ...]) -> str:
    *modules, leaf = path
    return ".".join([*(re.sub(r"_(\d+)", r".\1", name) for name in modules), _LEAVES[leaf]])


def _inverse(ndim: int) -> list[int]:
    return np.argsort(_AXES[ndim]).tolist()


def _without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Returns the given name by the name without `module` segments."""
    given = {}
    for name in names:
        segments = [segment for segment in name.split(".") if segment != "module"]
        if segments[-1:] == ["num_batches_tracked"]:
            continue
        plain = ".".join(segments)
        if plain in given:
            raise UsageError(f"the arrays {given[plain]!r} and {name!r} are the same parameter.")
        given[plain] = name
    return given


def _check_names(given: Mapping[str, str], expected: Iterable[str]) -> None:
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in set(expected)]
    problems = []
    if missing:
        problems.append(f"lack {_some(missing)}")
    if unknown:
        names = [given[name] for name in unknown]
        problems.append(f"hold {_some(names)}, which the network doesn't have")
    if problems:
        # A single stranger is a misspelling; many are another network.
        hint = did_you_mean(unknown[0], missing or expected) if len(unknown) == 1 else ""
        raise UsageError(f"the arrays {' and '.join(problems)}{hint or '.'}")


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(map(repr, names[:2])) + rest


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(array).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the array {name!r} can't be read as float32.") from error
