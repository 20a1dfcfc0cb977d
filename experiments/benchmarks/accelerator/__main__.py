"""`python -m experiments.benchmarks.accelerator`: measures the accelerator at hand."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adabatch_jax.system import command_lines
from experiments.benchmarks.results import RESULTS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts that the time is enough for; returns the exit code."""
    return command_lines.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        "python -m experiments.benchmarks.accelerator", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="when to begin nothing more")
    parser.add_argument("--torch-python", help="a Python that has torch; default: this one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args(argv)
    # PyTorch, in its own process, needs some of the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.7")
    from experiments.benchmarks.accelerator.measuring import Measuring

    measuring = Measuring(arguments.out, 60 * arguments.minutes, arguments.torch_python)
    measuring.run(quick=arguments.quick)
    print(measuring.markdown_path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
