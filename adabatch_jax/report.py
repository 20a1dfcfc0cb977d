"""`python -m adabatch_jax.report RUN [RUN ...]`: reports on runs and compares them."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError

if TYPE_CHECKING:
    from adabatch_jax.reporting.runs import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return command_lines.run(lambda: _report(_parser().parse_args(argv)))


def write_report(run_directory: os.PathLike | str, out: os.PathLike | str | None = None) -> Path:
    """Writes the report of one run, finished or not: HTML, and the curves as PNG.

    Args:
      run_directory: the run; the PNG files go there too.
      out: the HTML file, `report.html` in the run directory if not given.

    Returns:
      The HTML file.

    Raises:
      UsageError: the folder isn't a run directory.
      StorageError: a file can't be read or written.
    """
    from adabatch_jax.reporting.pages import run_page
    from adabatch_jax.reporting.runs import load_run

    run = load_run(run_directory)
    out = Path(out) if out is not None else run.directory / "report.html"
    _write_plots([run], run.directory, "curves")
    _write_page(out, run_page(run))  # last: where it is, all of the report is
    return out


def write_comparison(runs: Sequence["Run"], out: Path) -> None:
    """Writes the comparison of several runs: HTML, and the curves as PNG beside it.

    Raises:
      StorageError: a file can't be written.
    """
    from adabatch_jax.reporting.pages import comparison_page

    _write_page(out, comparison_page(runs))
    _write_plots(runs, out.parent, out.stem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adabatch_jax.report",
        description="Writes one self-contained HTML page about a run, or one that compares "
        "several, and the curves as PNG.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        help="the page (default: report.html in the run directory; in the current folder where "
        "runs are compared, with the PNG files beside it)",
    )
    return parser


def _report(arguments: argparse.Namespace) -> int:
    directories, out = arguments.runs, arguments.out
    if out is not None and Path(out).suffix not in (".html", ".htm"):
        raise UsageError(f"--out is an HTML file such as report.html, got {out!r}.")
    if len(directories) == 1:
        print(f"Report: {write_report(directories[0], out)}")
        return 0
    from adabatch_jax.reporting.runs import load_run

    runs = [load_run(directory) for directory in directories]
    path = Path(out or "report.html")
    write_comparison(runs, path)
    _print_comparison(runs)
    print(f"Report: {path}")
    return 0


def _write_page(path: Path, text: str) -> None:
    from adabatch_jax.system.files import write_atomically

    # A name of a folder that isn't UTF-8 has halves of characters in it.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _write_plots(runs: Sequence["Run"], directory: Path, prefix: str) -> None:
    from adabatch_jax.reporting.plots import AXES, curves, png
    from adabatch_jax.system.files import write_atomically

    for axis in AXES:
        write_atomically(directory / f"{prefix}_{axis.name}.png", png(curves(runs, axis)))


def _print_comparison(runs: Sequence["Run"]) -> None:
    """The comparison as a table: drawn on a terminal, whole lines of plain text elsewhere."""
    from adabatch_jax.reporting import figures

    rows = figures.comparison_rows(runs)
    if sys.stdout.isatty():
        _print_rich_table(figures.COMPARED, rows)
    else:
        for line in _plain_table([figures.COMPARED, *rows]):
            print(line)
    print(figures.digests_sentence(runs))


def _print_rich_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One line for each run where the terminal is wide enough, else one column for each."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    cells = [list(header), *map(list, rows)]
    is_wide = max(map(len, _plain_table(cells))) < console.width - 1
    if not is_wide:
        cells = [list(column) for column in zip(*cells, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column, name in enumerate(cells[0]):
        is_text = column < (2 if is_wide else 1)
        table.add_column(escape(name), justify="left" if is_text else "right", overflow="fold")
    for row in cells[1:]:
        table.add_row(*map(escape, row))
    console.print(table)


def _plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
