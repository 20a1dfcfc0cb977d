"""`python -m adabatch_jax COMMAND ...`, or once installed `adabatch COMMAND ...`: the commands."""

import importlib
import runpy
import sys
from collections.abc import Sequence

from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError, did_you_mean

PROGRAM = "adabatch"
COMMANDS = {
    "train": "train a network while its batch grows",
    "plan": "show what a schedule means, or measure what it gains",
    "report": "write a page about a run, or compare several",
    "predict": "say which class images are of, with a trained network",
    "sample": "go on with a text, with a trained language model",
    "export": "write a run's weights into a file",
    "prepare": "get a dataset ready to be trained on",
    "doctor": "look whether this machine is ready, and a run sound",
}
_COMPLETION = "completion"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; without one, lists the commands."""
    return command_lines.run(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    name, *arguments = argv or ["--help"]
    if name in ("--help", "-h"):
        print(_overview())
        return 0
    if name == _COMPLETION:
        print(_completion(), end="")
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}."
        raise UsageError(f"there is no command {name}{hint}")
    sys.argv[1:] = arguments
    # As `python -m` would, with the command's own way of being stopped.
    runpy.run_module(f"adabatch_jax.{name}", run_name="__main__", alter_sys=True)
    return 0


def _overview() -> str:
    width = max(map(len, (*COMMANDS, _COMPLETION)))
    texts = COMMANDS | {_COMPLETION: "print what makes bash and zsh complete commands and flags"}
    lines = (f"  {name.ljust(width)}  {text}" for name, text in texts.items())
    return "\n".join(
        (
            f"usage: {PROGRAM} COMMAND [flags], or python -m adabatch_jax COMMAND [flags]",
            "",
            *lines,
            "",
            "COMMAND --help lists its flags.",
        )
    )


def _completion() -> str:
    from adabatch_jax.system.shell_completion import bash_completion

    commands = {name: importlib.import_module(f"adabatch_jax.{name}") for name in COMMANDS}
    return bash_completion(PROGRAM, {name: command.parser() for name, command in commands.items()})


if __name__ == "__main__":
    sys.exit(main())
