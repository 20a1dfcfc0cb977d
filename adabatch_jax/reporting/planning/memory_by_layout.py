"""Memory of compiled updates: of a few layouts by compiling them, of those in between by a line."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from adabatch_jax.data.row_layout import BatchLayout


@dataclasses.dataclass(frozen=True)
class UpdateMemory:
    """Memory of an update on each device: state, batch, and temporaries."""

    num_bytes: int
    is_interpolated: bool = False


def update_memory(
    layouts: Iterable[BatchLayout],
    compiled_bytes: Callable[[Sequence[BatchLayout]], Mapping[BatchLayout, int]],
) -> dict[BatchLayout, UpdateMemory]:
    """Memory of a plan's updates; `compiled_bytes` compiles those of some layouts.

    Bytes grow with the rows that are computed at a time, and with the micro-batches that wait,
    in straight lines; so of the updates without micro-batches, and of those with micro-batches
    of one size, the smallest and the largest are compiled.

    >>> from adabatch_jax.data.row_layout import Layouts
    >>> def compiled_bytes(layouts):
    ...     return {layout: 100 + layout.batch_size for layout in layouts}
    >>> sizes = update_memory(map(Layouts().of, (10, 20, 40)), compiled_bytes)
    >>> [(memory.num_bytes, memory.is_interpolated) for memory in sizes.values()]
    [(110, False), (120, True), (140, False)]
    """
    layouts = list(layouts)
    families: dict[int | None, dict[int, BatchLayout]] = {}
    for layout in layouts:
        family, extent = _family_and_extent(layout)
        families.setdefault(family, {})[extent] = layout
    ends = [family[end(family)] for family in families.values() for end in (min, max)]
    num_bytes = compiled_bytes(list(dict.fromkeys(ends)))

    def memory(layout: BatchLayout) -> UpdateMemory:
        name, extent = _family_and_extent(layout)
        family = families[name]
        first, last = min(family), max(family)
        line = [first, last], [num_bytes[family[first]], num_bytes[family[last]]]
        return UpdateMemory(round(np.interp(extent, *line)), extent not in (first, last))

    return {layout: memory(layout) for layout in layouts}


def _family_and_extent(layout: BatchLayout) -> tuple[int | None, int]:
    """Which layouts lie on a line with this one, and where it lies there."""
    if layout.num_microbatches == 1:
        return None, layout.padded_size
    return layout.padded_size, layout.num_microbatches
