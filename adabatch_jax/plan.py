"""`python -m adabatch_jax.plan`: shows what a configuration would do, without touching data.

It takes the same arguments as adabatch_jax.train.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from adabatch_jax import commands
from adabatch_jax.errors import UsageError

if TYPE_CHECKING:
    from adabatch_jax.config import TrainConfig
    from adabatch_jax.plan_table import PlanRow

PROG = "python -m adabatch_jax.plan"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the plan; returns the exit code."""
    return commands.run(lambda: _plan(argv))


def _plan(argv: Sequence[str] | None) -> int:
    from adabatch_jax.arguments import parse_arguments
    from adabatch_jax.data.datasets import dataset_spec
    from adabatch_jax.plan_table import as_json, plan_notes, plan_rows

    @dataclasses.dataclass(frozen=True)
    class Options:
        config: str | None = None
        """Python file that defines `config = TrainConfig(...)`, or a run's config.json."""

        workdir: str | None = None
        """Accepted so that a command of train can be planned; nothing is written there."""

        num_examples: int | None = None
        """Examples per epoch; none: the dataset's."""

        devices: int = 1
        """Number of devices to lay the batches out on."""

        divisible_by: int = 1
        """Refuse batch sizes that are no multiple of this number."""

        memory: bool = True
        """Whether to compile each phase's update, which takes seconds, and show its memory."""

        json: bool = False
        """Print JSON instead of a table."""

    try:
        options, config = parse_arguments(Options, argv, PROG, __doc__)
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)
    if options.devices < 1:
        raise UsageError(f"--devices: must be at least 1, got {options.devices}.")
    num_examples = options.num_examples
    if num_examples is None:
        num_examples = dataset_spec(config.dataset, config.data.dir).num_examples
    plan = config.plan(num_examples, options.divisible_by)
    rows = plan_rows(config, plan, options.devices)
    if options.memory:
        rows = _with_memory(config, rows)
    if options.json:
        print(json.dumps(as_json(config, plan, rows, options.devices), indent=2))
        return 0
    _print_table(rows)
    for note in plan_notes(plan, rows):
        print(note)
    return 0


def _with_memory(config: "TrainConfig", rows: list["PlanRow"]) -> list["PlanRow"]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from adabatch_jax.plan_memory import update_bytes

    # Compilers don't hold the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        sizes = list(threads.map(lambda row: update_bytes(config, row), rows))
    return [
        dataclasses.replace(row, memory_bytes=size) for row, size in zip(rows, sizes, strict=True)
    ]


def _print_table(rows: Sequence["PlanRow"]) -> None:
    from adabatch_jax.plan_table import HEADER, table_cells

    table = [HEADER, *map(table_cells, rows)]
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
