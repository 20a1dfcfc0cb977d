"""Weights from PyTorch and back, as numpy arrays by PyTorch's names. Needs no torch.

The networks' attributes mirror the names of the official code, of torchvision and of OpenAI's GPT-2:
a number joins the segment before it, so `layer1.0.downsample.1.running_var` is
`layer1_0.downsample_1.var`, and `h.0.ln_1.weight` is `h_0.ln_1.scale`.
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
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# From PyTorch's axes to ours, by rank: OIHW -> HWIO and (out, in) -> (in, out).
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
# Those of GPT-2 that lie there as here: its layers are (in, out), and embeddings are no layers.
_AS_HERE = re.compile(r"(.*\.)?(c_attn|c_proj|c_fc|wte|wpe)")
_NUMBERED = re.compile(r"(?<!ln)_(\d+)")  # `ln_1` is so called there too

# Segments that wrappers add, and what is no weight: counters, and GPT-2's causal masks.
_WRAPPERS = {"module", "transformer"}
_NO_WEIGHTS = re.compile(r"(.*\.)?(num_batches_tracked|attn\.bias|attn\.masked_bias)")


def load_torch_weights(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets a network's parameters and BatchNorm statistics to those of its PyTorch original.

    The originals are torchvision's networks, those of the official code for CIFAR, and OpenAI's
    GPT-2, as transformers has it; a `state_dict()` or an opened `.npz` file is such a mapping as
    well. Values are cast to the network's float32.

    Args:
      model: changed in place, or not at all if anything doesn't fit.
      arrays: by PyTorch's name, in PyTorch's layout. Segments `module`, which DataParallel adds,
        and `transformer` are left out, and what is no weight is ignored: `num_batches_tracked`,
        GPT-2's causal masks `attn.bias`, and a `lm_head.weight` that is the embedding.

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
    given = _given(model, arrays)
    _check_names(given, variables)
    loaded = []
    for name, (path, variable) in variables.items():
        old = np.asarray(variable[...])
        new = _numbers(given[name], arrays[given[name]])
        shape = old.transpose(_inverse(name, old.ndim)).shape
        if new.shape != shape:
            raise UsageError(
                f"the array {given[name]!r} has the shape {new.shape}, but the network's is "
                f"{shape}."
            )
        value = jnp.asarray(new.transpose(_axes(name, new.ndim)), old.dtype)
        loaded.append((path, variable.replace(value)))
    nnx.update(model, nnx.from_flat_state(loaded))


def to_torch_arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns a network's parameters and BatchNorm statistics as PyTorch wants them.

    What training has left in a `TrainState` goes back into the network first, by
    `nnx.update(model, state.params, state.model_state)`. PyTorch takes the arrays with

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        network.load_state_dict(tensors)

    `num_batches_tracked` isn't among them: it only counts, and PyTorch fills it in itself. A GPT's
    names are those of `transformers.GPT2Model`; where it is built otherwise than GPT-2, others read
    them as they like.

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
        name, ours = _torch_name(path), np.asarray(variable[...])
        # PyTorch shares the memory of what it is given, so these must be copies.
        arrays[name] = np.array(ours.transpose(_inverse(name, ours.ndim)), order="C")
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
    for name, given in _given(model, arrays).items():
        array = np.asarray(arrays[given])
        if name in paths:
            path, variable = paths[name]
            room = "params" if isinstance(variable, nnx.Param) else "model_state"
            given, array = ".".join((room, *path)), array.transpose(_axes(name, array.ndim))
        found[given] = array
    return found


def _weights(model: nnx.Module) -> Iterable[tuple[tuple[str, ...], nnx.Variable]]:
    return nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def _torch_name(path: tuple[str, ...]) -> str:
    *modules, leaf = path
    return ".".join([*(_NUMBERED.sub(r".\1", name) for name in modules), _LEAVES[leaf]])


def _axes(name: str, ndim: int) -> tuple[int, ...] | None:
    """From PyTorch's axes to ours; None, as numpy takes it, where there are none of so many."""
    if _AS_HERE.fullmatch(name.rpartition(".")[0]):
        return tuple(range(ndim))
    return _AXES.get(ndim)


def _inverse(name: str, ndim: int) -> list[int]:
    return np.argsort(_axes(name, ndim)).tolist()


def _given(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns the given name of each weight by the name without wrappers' segments."""
    given = {}
    for name in arrays:
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if _NO_WEIGHTS.fullmatch(plain):
            continue
        if plain in given:
            raise UsageError(f"the arrays {given[plain]!r} and {name!r} are the same parameter.")
        given[plain] = name
    if not hasattr(model, "lm_head") and {"lm_head.weight", "wte.weight"} <= given.keys():
        head, embedding = (np.asarray(arrays[given[n]]) for n in ("lm_head.weight", "wte.weight"))
        if np.array_equal(head, embedding):  # tied, and in a state_dict twice
            del given["lm_head.weight"]
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
