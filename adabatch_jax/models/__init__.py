"""The paper's networks, in flax nnx, by name, and their weights from PyTorch and back.

>>> from adabatch_jax import models
>>> module = models.create("cnn_digits", num_classes=10, image_shape=(8, 8, 1), seed=0)
>>> params, model_state, loss_fn, eval_fn = models.functions(module)
"""

import importlib
from typing import TYPE_CHECKING

from adabatch_jax.models.registry import create, names

if TYPE_CHECKING:
    from adabatch_jax.models.pure_functions import functions, loss_properties
    from adabatch_jax.models.torch_weights import load_torch_weights, to_torch_arrays

__all__ = [
    "create", "functions", "load_torch_weights", "loss_properties", "names", "to_torch_arrays",
]  # fmt: skip

__docformat__ = "google"

# Command lines look names up before they know whether they need jax and flax at all.
_LAZY = {
    "functions": "pure_functions",
    "load_torch_weights": "torch_weights",
    "loss_properties": "pure_functions",
    "to_torch_arrays": "torch_weights",
}

if not TYPE_CHECKING:  # or checkers would take any name

    def __getattr__(name: str):
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value


def __dir__():
    return [*globals(), *_LAZY]
