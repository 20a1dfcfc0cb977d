"""The command line of `train` and `plan`: every field of the configuration is a flag."""

import argparse
import contextlib
import dataclasses
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from adabatch_jax.config.files import load_config
from adabatch_jax.config.settings import DataSettings, Settings
from adabatch_jax.config.train_config import TrainConfig
from adabatch_jax.system.errors import UsageError, did_you_mean

T = TypeVar("T")

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_RULE = re.compile(r"[─-╿+-]{4,}")

# Their values may be given without quotes: --batch-schedule 128 x2 every 20ep.
_TEXT_FLAGS = ("--batch-schedule", "--batch_schedule", "--lr", "--keep-best", "--keep_best")


def parse_arguments(
    options: type[T], argv: Sequence[str] | None, prog: str, description: str
) -> tuple[T, TrainConfig]:
    """Reads a command line.

    Args:
      options: a dataclass of the command's own flags; has a field `config`.
      argv: the arguments, by default the process's.
      prog: the command, for `--help`.
      description: what it does, for `--help`.

    Returns:
      The command's own flags, and the configuration: the file's of `--config`, or the default,
      changed by the flags.

    Raises:
      UsageError: a mistake in the command line or the file.
      SystemExit: after `--help`.
    """
    argv = _joined(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", default=None)
    path = first.parse_known_args(argv)[0].config
    default = TrainConfig() if path is None else load_config(path)
    values = {f.name: getattr(default, f.name) for f in dataclasses.fields(Settings)}
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("options", Annotated[options, tyro.conf.arg(name="")]),
            ("settings", Annotated[Settings, tyro.conf.arg(name="")], Settings(**values)),
        ],
    )
    with one_sentence(_flags(options)):
        parsed = tyro.cli(command, args=argv, prog=prog, description=description)
    fields = {f.name: getattr(parsed.settings, f.name) for f in dataclasses.fields(Settings)}
    return parsed.options, TrainConfig(**fields)


def command_arguments(config: TrainConfig, path: str | None = None) -> str:
    """The flags that give this configuration back, as one would type them.

    Args:
      config: the configuration.
      path: the file of `--config`; flags are what differs from it, or from the default.

    >>> command_arguments(TrainConfig(batch_schedule="32 x2 every 4ep max 128", seed=1))
    "--batch-schedule '32 x2 every 4ep max 128' --seed 1"
    """
    default = TrainConfig() if path is None else load_config(path)
    ours, theirs = _flag_values(config), _flag_values(default)
    words = [] if path is None else ["--config", path]
    for flag, value in ours.items():
        if value == theirs[flag]:
            continue
        if isinstance(value, bool):
            group, _, name = flag.rpartition(".")
            prefix = f"{group}." if group else ""
            words.append(f"--{prefix}{name if value else f'no-{name}'}")
        else:
            words += [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def _flag_values(config: TrainConfig) -> dict[str, Any]:
    fields = config.to_dict()
    fields |= {f"data.{name}": value for name, value in fields.pop("data").items()}
    return {name.replace("_", "-"): value for name, value in fields.items()}


def _joined(argv: Sequence[str]) -> list[str]:
    """Makes one argument of the words behind a flag whose value is a text."""
    joined: list[str] = []
    for word in argv:
        is_value = len(joined) > 1 and joined[-2] in _TEXT_FLAGS
        is_assigned = bool(joined) and joined[-1].startswith(tuple(f"{f}=" for f in _TEXT_FLAGS))
        if (is_value or is_assigned) and not word.startswith("--"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


@contextlib.contextmanager
def one_sentence(flags: Sequence[str]) -> Iterator[None]:
    """Turns the box of several lines that tyro prints into a UsageError of one sentence.

    Args:
      flags: the command's flags, for the nearest one to an unknown flag.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_unbox(box.getvalue(), flags)) from None


def _unbox(text: str, flags: Sequence[str]) -> str:
    """The complaint in the parser's box: what stands between its first two rules.

    >>> box = "╭─ Parsing error ──╮\\n│ Unrecognized options: --datset │\\n╰──────╯"
    >>> _unbox(box, ["--dataset"])
    "Unrecognized options: --datset; did you mean '--dataset'?"
    """
    lines = [line.strip(" │|") for line in _COLOURS.sub("", text).splitlines() if line.strip()]
    rules = [i for i, line in enumerate(lines) if _RULE.search(line)]
    stop = next((i for i in rules if i > 0), len(lines))
    words = " ".join(" ".join(lines[1:stop]).split())
    unknown = re.search(r"Unrecognized options: (--[^\s,=]+)", words)
    if unknown and "mean" not in words:
        flag = unknown.group(1)
        words = f"Unrecognized options: {flag}{did_you_mean(flag, flags)}"
    return words if words.endswith((".", "?")) else f"{words}."


def _flags(options: type) -> list[str]:
    names = [field.name for field in dataclasses.fields(Settings) if field.name != "data"]
    names += [f"data.{field.name}" for field in dataclasses.fields(DataSettings)]
    names += [field.name for field in dataclasses.fields(options)]
    return [f"--{name.replace('_', '-')}" for name in names]
