"""`python -m adabatch_jax.prepare NAME`: gets a dataset ready to be trained on."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adabatch_jax.config.value_texts import is_text
from adabatch_jax.system.command_lines import Parser, run
from adabatch_jax.system.errors import UsageError

if TYPE_CHECKING:
    from adabatch_jax.data.datasets.preparation import StageProgress

_PLAIN_LINE_SECONDS = 5.0
_EPILOG = """\
digits (ships with scikit-learn), fashion_mnist, mnist, cifar10 and cifar100 need no TensorFlow.
Any other dataset of tensorflow_datasets with an image and a label is prepared by tfds itself,
which may need it: pip install "adabatch_jax[prepare]". imagenet2012 needs --from FOLDER.

examples:
  python -m adabatch_jax.prepare fashion_mnist
  python -m adabatch_jax.prepare cifar10 --from ~/Downloads
  python -m adabatch_jax.prepare ./photos --name mine
  python -m adabatch_jax.prepare text:./corpus.txt --name corpus
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares the dataset that `argv` names, and returns the exit code."""
    return run(lambda: _prepare(parser().parse_args(argv)))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        prog="python -m adabatch_jax.prepare",
        description="Get a dataset ready to be trained on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "dataset",
        metavar="NAME",
        help="a dataset, such as cifar10; with --name a folder or file of own images, or text:PATH",
    )
    parser.add_argument(
        "--name",
        metavar="NEW",
        help="what own data are called from now on: --dataset NEW, or text:NEW",
    )
    parser.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=int,
        help="height and width to resize and crop own images to (default: as they are)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="of a text: the JSON file of a tokenizer of the package tokenizers (default: bytes)",
    )
    parser.add_argument(
        "--from",
        dest="from_folder",
        metavar="FOLDER",
        help="take the original files from this folder instead of the network",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where to put it (default: $ADABATCH_DATA_DIR, else the user's cache folder)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="prepare it anew, replacing what is there once the new one is complete",
    )
    return parser


def _prepare(arguments: argparse.Namespace) -> int:
    from adabatch_jax.data.datasets.own.opening import own_path
    from adabatch_jax.data.datasets.preparation import prepare, prepare_own

    dataset, name = arguments.dataset, arguments.name
    if is_text(dataset):
        return _prepare_text(arguments)
    if arguments.tokenizer is not None:
        raise UsageError("--tokenizer is for texts: text:FILE_OR_FOLDER.")
    if name is None and own_path(dataset, arguments.data_dir) is not None:
        raise UsageError(f"{dataset} is a path; say what its images are to be called with --name.")
    if name is None and arguments.image_size is not None:
        raise UsageError("--image-size is for own images, which --name gives a name.")
    if name is not None and arguments.from_folder is not None:
        raise UsageError("--from is for known datasets; own images are named by their path alone.")
    started = time.monotonic()
    overwrite = arguments.overwrite
    with _progress_display() as report:
        if name is None:
            path = prepare(
                dataset, arguments.data_dir, arguments.from_folder, report, overwrite=overwrite
            )
        else:
            path = prepare_own(
                dataset, name, arguments.data_dir, arguments.image_size, report,
                overwrite=overwrite,
            )  # fmt: skip
    print(f"{name or dataset} is ready in {path} ({time.monotonic() - started:.1f} s).")
    return 0


def _prepare_text(arguments: argparse.Namespace) -> int:
    from adabatch_jax.data.tokens.prepared_texts import prepare_text

    dataset, name = arguments.dataset, arguments.name
    if name is None:
        raise UsageError(f"{dataset} needs a name; say what it is to be called with --name.")
    if arguments.from_folder is not None or arguments.image_size is not None:
        raise UsageError(
            "--from and --image-size are for images; a text is named by its path alone."
        )
    started, overwrite = time.monotonic(), arguments.overwrite
    path = prepare_text(
        dataset, name, arguments.data_dir, arguments.tokenizer, overwrite=overwrite
    )  # fmt: skip
    print(f"text:{name} is ready in {path} ({time.monotonic() - started:.1f} s).")
    return 0


@contextmanager
def _progress_display() -> Iterator[Callable[["StageProgress"], None]]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    description, amount = TextColumn("{task.description}"), TextColumn("{task.fields[amount]}")
    columns = (description, BarColumn(), amount, TimeElapsedColumn())
    # The stream is fixed here: tfds's own output is redirected while it works.
    with Progress(*columns, console=Console(file=sys.stderr)) as bars:
        tasks = {}

        def report(progress: "StageProgress") -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, amount="")
            amount = _amount(progress)
            bars.update(
                tasks[progress.stage], completed=progress.done, total=progress.total, amount=amount
            )

        yield report


def _plain_lines() -> Callable[["StageProgress"], None]:
    last: dict[str, float] = {}

    def report(progress: "StageProgress") -> None:
        now = time.monotonic()
        is_due = now - last.get(progress.stage, -_PLAIN_LINE_SECONDS) >= _PLAIN_LINE_SECONDS
        if is_due or progress.done == progress.total:
            last[progress.stage] = now
            print(f"{progress.stage}: {_amount(progress)}", file=sys.stderr, flush=True)

    return report


def _amount(progress: "StageProgress") -> str:
    scale, digits, unit = (1e6, 1, "MB") if progress.unit == "bytes" else (1, 0, progress.unit)
    amounts = (progress.done, progress.total)
    texts = [f"{amount / scale:,.{digits}f}" for amount in amounts if amount is not None]
    return f"{' of '.join(texts)} {unit}"


if __name__ == "__main__":
    # SIGTERM unwinds like Ctrl-C, so that temporary folders are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
