"""Completion of commands and flags in a shell."""

import argparse
from collections.abc import Iterable, Mapping

_SCRIPT = """\
# Completion of {program} for bash; for zsh too, after: autoload -U bashcompinit && bashcompinit
_{program}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if (( COMP_CWORD == 1 )); then
    words="{commands}"
  else case "${{COMP_WORDS[1]}} $before" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _{program} {program}
"""


def bash_completion(program: str, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """A script for bash that completes a program's commands, their flags, and texts to choose from.

    Where nothing fits the shell completes names of files.

    >>> parser = argparse.ArgumentParser(add_help=False)
    >>> flag = parser.add_argument("--order", choices=["up", "down"])
    >>> print(bash_completion("sort", {"lines": parser}))  # doctest: +ELLIPSIS
    # Completion of sort for bash; ...
        "lines --order") words="up down" ;;
        "lines "*) words="--order" ;;
    ...
    """
    cases = (line for name, parser in parsers.items() for line in _cases(name, parser))
    return _SCRIPT.format(program=program, commands=" ".join(parsers), cases="\n".join(cases))


def _cases(command: str, parser: argparse.ArgumentParser) -> Iterable[str]:
    flags = []
    for action in parser._actions:
        flags += action.option_strings
        choices = action.choices or getattr(action, "completions", ())
        for flag in action.option_strings if choices else ():
            yield f'    "{command} {flag}") words="{" ".join(choices)}" ;;'
    yield f'    "{command} "*) words="{" ".join(flags)}" ;;'
