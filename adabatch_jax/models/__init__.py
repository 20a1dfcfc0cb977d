"""The paper's networks, in flax nnx, by name: `create` and `functions`."""

from adabatch_jax.models.registry import create, names

__all__ = ["create", "functions", "names"]


def __getattr__(name: str):
    # Command lines look names up before they know whether they need jax and flax at all.
    if name == "functions":
        from adabatch_jax.models.functional import functions

        return functions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
