"""`python -m adabatch_jax.report RUN [RUN ...]`: reports on runs and compares them."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.object_store import is_url

if TYPE_CHECKING:
    from rich.table import Table

    from adabatch_jax.reporting.saved_run import Run

_ANY_WIDTH = 100_000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return command_lines.run(lambda: _report(parser().parse_args(argv)))


def write_report(run_directory: os.PathLike | str, out: os.PathLike | str | None = None) -> Path:
    """Writes the report of one run, finished or not: HTML, and the curves as PNG.

    Args:
      run_directory: the run.
      out: the HTML file, `report.html` in the run directory if not given; the PNG files go beside
        it.

    Returns:
      The HTML file.

    Raises:
      UsageError: the folder isn't a run directory.
      StorageError: a file can't be read or written.
    """
    from adabatch_jax.reporting.report_pages import run_page
    from adabatch_jax.reporting.saved_run import load_run, page_subject

    run, subject = load_run(run_directory), page_subject(Path(run_directory))
    # What is written elsewhere leaves a run that is somebody else's alone.
    names = "curves" if out is None else Path(out).stem
    out = run.directory / "report.html" if out is None else Path(out)
    _write_plots([run], out.parent, names)
    _write_page(out, run_page(run), subject)  # last: where it is, all of the report is
    return out


def write_comparison(runs: Sequence["Run"], out: Path) -> None:
    """Writes the comparison of several runs: HTML, and the curves as PNG beside it."""
    from adabatch_jax.reporting.report_pages import comparison_page

    _write_page(out, comparison_page(runs))
    _write_plots(runs, out.parent, out.stem)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_lines.Parser(
        prog="python -m adabatch_jax.report",
        description="Writes one self-contained HTML page about a run, or one that compares "
        "several, and the curves as PNG.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, or gs://bucket/folder"
    )
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        help="the page (default: report.html in the run directory; in the current folder where "
        "runs are compared); the PNG files go beside it",
    )
    return parser


def _report(arguments: argparse.Namespace) -> int:
    directories, out = arguments.runs, arguments.out
    if out is not None and Path(out).suffix not in (".html", ".htm"):
        raise UsageError(f"--out is an HTML file such as report.html, got {out!r}.")
    if out is not None and is_url(out):
        raise UsageError(f"--out: the page is written to a folder of this machine, not {out!r}.")
    from adabatch_jax.runs.folder.folder_reading import REPORT
    from adabatch_jax.runs.folder.opened_folder import opened

    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(opened(directory, "RUN")) for directory in directories]
        if len(folders) == 1:
            path = write_report(folders[0].path, out)
            folders[0].push(REPORT)
            print(printable(f"Report: {f'{folders[0]}/{path.name}' if out is None else path}"))
            return 0
        from adabatch_jax.reporting.saved_run import load_run

        runs = [load_run(folder.path) for folder in folders]
        path = Path(out or "report.html")
        write_comparison(runs, path)
    _print_comparison(runs)
    print(printable(f"Report: {path}"))
    return 0


def _write_page(path: Path, text: str, subject: bytes = b"") -> None:
    from adabatch_jax.reporting.html_elements import sealed
    from adabatch_jax.system.files import write_atomically

    write_atomically(path, sealed(text, subject))


def _write_plots(runs: Sequence["Run"], directory: Path, prefix: str) -> None:
    from adabatch_jax.reporting.plot_elements import png
    from adabatch_jax.reporting.plots import axes_of, curves
    from adabatch_jax.system.files import write_atomically

    for axis in axes_of(runs):
        write_atomically(directory / f"{prefix}_{axis.name}.png", png(curves(runs, axis)))


def _print_comparison(runs: Sequence["Run"]) -> None:
    """The comparison as a table: whole lines of plain text where it isn't on a terminal.

    On one that is too narrow for a line per run it has a column for each.
    """
    from rich.console import Console

    from adabatch_jax.reporting import quoted_figures

    cells = quoted_figures.comparison_table(runs)
    is_terminal = sys.stdout.isatty()
    console, table = Console(), _table(cells, num_text_columns=2, has_rule=is_terminal)
    width = console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum
    if not is_terminal:
        console = Console(width=width)
    elif width > console.width:
        table = _table([*zip(*cells, strict=True)], num_text_columns=1, has_rule=True)
    console.print(table)
    print(quoted_figures.digests_sentence(runs))
    differing, _ = quoted_figures.differing_settings(runs)
    names = ", ".join(name for name in differing if not name.startswith("plan.")) or "none"
    print(printable(f"Settings that differ: {names}."))


def _table(cells: Sequence[Sequence[str]], num_text_columns: int, has_rule: bool) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    space = 1 if has_rule else 2  # the rule's box has another between columns
    table = Table(
        box=box.SIMPLE_HEAD if has_rule else None, pad_edge=False, padding=(0, space, 0, 0)
    )
    for column, name in enumerate(cells[0]):
        justify = "left" if column < num_text_columns else "right"
        table.add_column(escape(name), justify=justify, overflow="fold")
    for row in cells[1:]:
        table.add_row(*map(escape, row))
    return table


if __name__ == "__main__":
    sys.exit(main())
