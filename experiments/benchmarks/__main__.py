"""`python -m experiments.benchmarks [NAME ...]`: measures on the CPU, and writes the table."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError, did_you_mean
from experiments.benchmarks.options import Options
from experiments.benchmarks.results import RESULTS, Results
from experiments.benchmarks.rows import summary_line
from experiments.benchmarks.running import BENCHMARKS, run_apart


def main(argv: Sequence[str] | None = None) -> int:
    """Runs benchmarks one after the other; returns the exit code."""
    return command_lines.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser("python -m experiments.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--torch-python", help="a Python that has torch; default: this one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in BENCHMARKS:
            hint = did_you_mean(name, BENCHMARKS) or f"; there are {', '.join(BENCHMARKS)}."
            raise UsageError(f"there is no benchmark {name!r}{hint}")
    options = Options(arguments.torch_python, arguments.quick)
    results = Results(arguments.out, "cpu")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as cache:
        for name in arguments.names or BENCHMARKS:
            print(f"{name} ...", flush=True)
            measured = run_apart(name, options, cache)
            results.put(name, measured)
            for row in measured["rows"]:
                print(f"  {summary_line(row)}", flush=True)
    print(results.markdown_path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
