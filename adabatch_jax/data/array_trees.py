"""Arrays in nested dicts and tuples, as sources give them: a list in one is an array too."""

from collections.abc import Callable
from typing import Any

import numpy as np


def is_list(node: Any) -> bool:
    """Whether a node is a list, which stands for one array."""
    return isinstance(node, list)


def map_arrays(function: Callable[..., Any], arrays: Any, *others: Any) -> Any:
    """Maps numpy arrays, or lists of numbers, in nested dicts and tuples; `others` are alike.

    >>> map_arrays(len, {"x": [1, 2], "more": (np.zeros(3),)})
    {'more': (3,), 'x': 2}
    """
    import jax

    def mapped(array: Any, *others: Any) -> Any:
        return function(np.asarray(array), *others)

    return jax.tree.map(mapped, arrays, *others, is_leaf=is_list)


def arrays_by_name(arrays: Any) -> dict[str, Any]:
    """The arrays, or lists of numbers, in nested dicts and tuples, by the names on the way there.

    >>> arrays_by_name({"x": 1, "more": {"y": (2,)}})
    {'more.y.0': 2, 'x': 1}
    """
    import jax

    leaves = jax.tree.leaves_with_path(arrays, is_leaf=is_list)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
