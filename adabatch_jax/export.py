"""`python -m adabatch_jax.export RUN --to weights.safetensors`: a run's weights, in one file.

Beside it a JSON says which network they are of, its classes, and how images are normalized.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.object_store import is_url

if TYPE_CHECKING:
    from adabatch_jax.runs.weights import Weights


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file and its JSON; returns the exit code."""
    return command_lines.run(lambda: _export(parser().parse_args(argv)))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_lines.Parser(
        prog="python -m adabatch_jax.export",
        description="Writes the weights of a run's newest sound checkpoint into a file, and what "
        "is known of them into a JSON beside it.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--to", required=True, metavar="FILE", help="what to write: a .safetensors or an .npz"
    )
    add_choice(parser)
    parser.add_argument(
        "--torch-names",
        action="store_true",
        help="PyTorch's names and layout, as its state_dict has them; for our networks only",
    )
    return parser


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose a checkpoint."""
    parser.add_argument(
        "--best", action="store_true", help="the checkpoint with the best score (--keep-best)"
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of update N")


def _export(arguments: argparse.Namespace) -> int:
    from adabatch_jax.runs.weight_files import check_suffix
    from adabatch_jax.runs.weights import export_weights, weights_of_run

    if is_url(arguments.to):
        raise UsageError(
            f"--to: the weights are written to a folder of this machine, not {arguments.to!r}."
        )
    path = Path(arguments.to)
    check_suffix(path, "--to")
    weights = weights_of_run(arguments.run, arguments.best, arguments.step)
    if arguments.torch_names:
        weights = _with_torch_names(arguments.run, weights)
    beside = export_weights(path, weights, arguments.torch_names)
    count = sum(array.size for array in weights.arrays.values())
    print(
        printable(
            f"{path}: {len(weights.arrays)} arrays, {count:,} numbers, of update "
            f"{weights.about['step']:,} of {arguments.run}; about them: {beside}"
        )
    )
    return 0


def _with_torch_names(run: str, weights: "Weights") -> "Weights":
    import dataclasses

    from adabatch_jax.models import names, to_torch_arrays
    from adabatch_jax.runs.loaded_run import load_run

    if weights.about["network"] not in names():
        raise UsageError(
            f"--torch-names: the networks of this package have names in PyTorch, and {run} trained "
            f"{weights.about['network'] or 'one of your own'}."
        )
    # The same one: a run that is trained in has newer ones meanwhile.
    loaded = load_run(run, step=weights.about["step"])
    return dataclasses.replace(weights, arrays=to_torch_arrays(loaded.model))


if __name__ == "__main__":
    sys.exit(main())
