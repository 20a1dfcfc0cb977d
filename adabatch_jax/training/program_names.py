"""Which compiled programs the updates of a plan need: those of batches that look alike are one."""

from collections.abc import Hashable, Iterable
from typing import Protocol

# More programs than this are worth a warning: each takes seconds to compile.
MANY_PROGRAMS = 16


class Shape(Protocol):
    """What a program depends on of a `BatchLayout`, or of a row of the plan's table."""

    num_microbatches: int
    rows_per_device: int


def program_names(layout: Shape, split: bool) -> tuple[Hashable, ...]:
    """The programs that an update needs; `split`: micro-batches are dispatched one by one.

    >>> from adabatch_jax.data.row_layout import Layouts
    >>> layouts = [Layouts(num_devices=8).of(batch_size) for batch_size in (30, 32, 40)]
    >>> [program_names(layout, split=False) for layout in layouts]
    [(('update', 1, 4),), (('update', 1, 4),), (('update', 1, 5),)]
    >>> program_names(Layouts(8).of(20), split=True)
    ('begin', ('add', 8), 'finish')
    """
    if split:
        return ("begin", ("add", layout.rows_per_device), "finish")
    return (("update", layout.num_microbatches, layout.rows_per_device),)


def num_programs(layouts: Iterable[Shape], split: bool) -> int:
    """How many programs updates with batches of all these layouts need."""
    return len({name for layout in layouts for name in program_names(layout, split)})
