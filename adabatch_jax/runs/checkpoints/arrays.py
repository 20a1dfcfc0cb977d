"""The leaves of a train state as arrays that can be stored, described and compared."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_free(leaf: Any) -> bool:
    """Whether a leaf is an array that JAX may move: it wasn't put on a device by name.

    Programs for such arrays are others than those for arrays that must stay where they are.
    """
    return isinstance(leaf, jax.Array) and not leaf.committed


def described(leaf: Any) -> str:
    """The dtype and the shape of a leaf.

    >>> described(np.ones((2, 3), np.float32)), described(jax.random.key(0)), described(2.5)
    ('float32[2, 3]', 'key<fry>[]', 'float64[]')
    """
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def stored(leaf: Any) -> jax.Array | np.ndarray:
    """The numbers that are stored for a leaf: a key's bits, an array for a host's scalar."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def as_leaf(array: jax.Array | np.ndarray, like: Any) -> Any:
    """The leaf whose `stored` is `array`, of the kind and with the sharding of `like`."""
    if is_free(like):
        array = jnp.array(array)
    if is_key(like):
        keys = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
        return keys if is_free(like) else jax.device_put(keys, like.sharding)
    if isinstance(like, jax.Array | np.ndarray):
        return array
    return type(like)(array[()])


def host_copy(array: jax.Array | np.ndarray) -> np.ndarray:
    """The values on the host, in C order.

    A copy also on a CPU: while a view of an array lives, it can't be donated. All of the array
    must be on this process's devices.
    """
    return np.array(array, order="C", copy=True)


def array_digest(description: str, values: np.ndarray) -> str:
    """sha256 of an array's dtype, shape and values, wherever they lay and however sharded.

    >>> array_digest("float32[2]", np.zeros(2, np.float32))[:8]
    '5a374acd'
    """
    digest = hashlib.sha256(f"{description};".encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def array_digests(
    descriptions: Mapping[str, str], values: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """`array_digest` of each array, by its name."""
    return {name: array_digest(text, values[name]) for name, text in descriptions.items()}
