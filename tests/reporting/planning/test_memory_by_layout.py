"""Memory of all layouts from a few."""

from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.reporting.planning.memory_by_layout import UpdateMemory, update_memory


def machine_bytes(layout):
    """Rows that are computed at a time take 100, rows that wait 3."""
    rows = layout.num_microbatches * layout.padded_size
    return 1000 + 100 * layout.padded_size + 3 * rows + 50 * (layout.num_microbatches > 1)


def memory_and_compiled(layouts):
    compiled = []

    def compile_all(some):
        compiled.extend(some)
        return {layout: machine_bytes(layout) for layout in some}

    return update_memory(layouts, compile_all), compiled


def test_the_line_goes_through_what_was_not_compiled():
    sizes = [10, 20, 40, 64, 80, 100, 128, 640, 6400]
    layouts = [Layouts(64, num_devices=4).of(size) for size in sizes]
    memory, compiled = memory_and_compiled(layouts)
    assert {layout: m.num_bytes for layout, m in memory.items()} == {
        layout: machine_bytes(layout) for layout in layouts
    }
    # Of those in one piece the ends, of those in micro-batches of 64 rows the ends.
    assert [layout.batch_size for layout in compiled] == [10, 64, 128, 6400]
    assert [layout.batch_size for layout, m in memory.items() if m.is_interpolated] == [20, 40, 640]


def test_layouts_that_look_alike_are_compiled_once():
    layouts = [Layouts(100).of(size) for size in (910, 950, 1000)]
    memory, compiled = memory_and_compiled(layouts)
    assert len(compiled) == 1
    assert set(memory.values()) == {UpdateMemory(machine_bytes(layouts[0]))}
