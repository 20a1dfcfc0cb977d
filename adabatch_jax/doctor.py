"""`python -m adabatch_jax.doctor [WORKDIR]`: is this machine ready, and is that run sound?

It reads and writes nothing: neither in the run's folder nor in any other.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adabatch_jax.system import command_lines

if TYPE_CHECKING:
    from adabatch_jax.reporting.diagnosis.findings import Finding
    from adabatch_jax.system.mirrored_folder import WorkFolder

_EPILOG = """\
The exit code is 0, or that of the first problem: 2 for the environment and for a folder that is
in use or holds no run, 4 for checkpoints and what belongs to them, 5 for files and disks.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what was found; returns the exit code."""
    return command_lines.run(lambda: _examine(parser().parse_args(argv)))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = command_lines.Parser(
        prog="python -m adabatch_jax.doctor",
        description="Looks at this machine, and at a run's folder: its lock, every checkpoint, "
        "the metrics, and what training there would do. Changes nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "workdir", nargs="?", metavar="WORKDIR", help="a run's folder, or gs://bucket/folder"
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where datasets are prepared (default: the run's, $ADABATCH_DATA_DIR, or the user's "
        "cache folder)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def _examine(arguments: argparse.Namespace) -> int:
    if arguments.workdir is None:
        return _examined(None, arguments)
    from adabatch_jax.runs.folder.opened_folder import opened

    with opened(arguments.workdir, "WORKDIR") as folder:
        return _examined(folder, arguments)


def _examined(folder: "WorkFolder | None", arguments: argparse.Namespace) -> int:
    from adabatch_jax.reporting.diagnosis.environment_findings import environment_findings
    from adabatch_jax.reporting.diagnosis.run_findings import run_findings
    from adabatch_jax.runs.folder.workdir_choice import saved_config
    from adabatch_jax.runs.kept_numerics import keep_threads
    from adabatch_jax.system.mirrored_folder import MirroredFolder

    workdir = None if folder is None else folder.path
    if workdir is not None:
        keep_threads(workdir)  # as training there would, before JAX has its devices
    settings = None if workdir is None else saved_config(workdir)
    data_dir = arguments.data_dir or (settings.data.dir if settings else None)
    sections = {"environment": list(environment_findings(workdir, data_dir))}
    if workdir is not None:
        found = run_findings(workdir, is_copy=isinstance(folder, MirroredFolder))
        sections["run"] = [
            dataclasses.replace(finding, text=folder.named(finding.text)) for finding in found
        ]
    codes = [f.exit_code for findings in sections.values() for f in findings if f.exit_code]
    exit_code = codes[0] if codes else 0
    if arguments.json:
        content = {name: [f.to_dict() for f in findings] for name, findings in sections.items()}
        print(json.dumps({**content, "exit_code": exit_code}, indent=2))
    else:
        _print_tables(sections, num_problems=len(codes))
    return exit_code


def _print_tables(sections: dict[str, list["Finding"]], num_problems: int) -> None:
    from adabatch_jax.reporting.diagnosis.findings import table_lines

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name, findings in sections.items():
        print(name.capitalize())
        for line in table_lines(findings, width):
            print(line)
    number = f"{num_problems} problem{'s'[: num_problems > 1]}."
    print(number if num_problems else "No problem was found.")


if __name__ == "__main__":
    sys.exit(main())
