"""Command lines from declarations: every declared field is a flag."""

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from adabatch_jax.config.declarations import (
    Declaration,
    Role,
    declarations,
    flag_of,
    flattened,
    replaced,
)
from adabatch_jax.config.familiar_flags import advice
from adabatch_jax.config.files import load_config
from adabatch_jax.config.recipe_flags import RecipeFlags, not_of_the_recipe, with_recipe
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.system.command_lines import Parser, command_text
from adabatch_jax.system.errors import UsageError, did_you_mean

Options = TypeVar("Options", bound=RecipeFlags)


def parse_arguments(
    options: type[Options],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    tell: Callable[[str], Any] = print,
    has_open_end: bool = False,
) -> tuple[Options, TrainConfig]:
    """Reads a command line that configures a run, by default the process's.

    Args:
      options: the command's own flags, one of them `config`.
      argv: the arguments.
      prog: the command, for `--help`.
      description: what it does, for `--help`.
      tell: what is called with sentences about a recipe or another system's schedule.
      has_open_end: whether a recipe is only looked at; see `Recipe.run`.

    Returns:
      The command's own flags, and the configuration: the file's of `--config`, or the default, with
      the recipe's of `--recipe`, changed by the flags.

    Raises:
      UsageError: a mistake in the command line or the file.
      SystemExit: after `--help`.
    """
    argv = sys.argv[1:] if argv is None else argv
    first = Parser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--duration", "--epochs"):
        first.add_argument(name)
    first.add_argument("--batch-schedule", nargs="*")
    given = first.parse_known_args([*_words(argv)])[0]
    config = TrainConfig() if given.config is None else load_config(given.config)
    own, changed = parse_flags(argv, prog, description, options(), config)
    if own.schedule_flags and given.batch_schedule is not None:
        raise UsageError(f"{own.schedule_flags[0]} and --batch-schedule: give one of them.")
    length = given.duration or (given.epochs and f"{given.epochs}ep")
    config, notes = with_recipe(own, config, changed, length, has_open_end)
    for note in notes:
        tell(note)
    if not notes:
        return own, changed
    own, changed = parse_flags(argv, prog, description, options(), config)
    if own.recipe is not None:
        for note in not_of_the_recipe(config, changed):
            tell(note)
    return own, changed


def parse_flags(
    argv: Sequence[str], prog: str, description: str, *instances: Any, positional: str | None = None
) -> tuple[Any, ...]:
    """Reads flags for the declared fields of some dataclasses.

    Args:
      argv: the arguments.
      prog: the command, for `--help`.
      description: what it does, for `--help`.
      instances: hold the defaults; no two have a field of the same name.
      positional: what the argument without a flag is called, if there is one.

    Returns:
      The instances with what was given, and behind them the positional argument.

    Raises:
      UsageError: an unknown flag, or a value that can't work.
      SystemExit: after `--help`.
    """
    parser = flags_parser(prog, description, *instances, positional=positional)
    namespace, unknown = parser.parse_known_args([*_words(argv)])
    if unknown:
        word = next((word for word in unknown if word.startswith("--")), unknown[0])
        flags = [flag_of(name) for instance in instances for name in declarations(type(instance))]
        known_elsewhere = advice(word, flags)
        hint = did_you_mean(word, flags) or "."
        raise UsageError(
            f"there is no flag {word}{hint if known_elsewhere is None else f': {known_elsewhere}.'}"
        )
    given, changed = vars(namespace), []
    for instance in instances:
        names = given.keys() & declarations(type(instance))
        changed.append(replaced(instance, {name: given[name] for name in names}))
    return (*changed, given[positional]) if positional else tuple(changed)


def flags_parser(
    prog: str, description: str, *instances: Any, positional: str | None = None
) -> Parser:
    """The parser of a command whose flags are the declared fields of some dataclasses."""
    parser = Parser(
        prog=prog, usage=" ".join([prog, *filter(None, [positional]), "[flags]"]),
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    if positional is not None:
        parser.add_argument(positional)
    groups = {None: parser} | {role: parser.add_argument_group(role.value) for role in Role}
    for instance in instances:
        defaults = flattened(dataclasses.asdict(instance))
        for name, declared in declarations(type(instance)).items():
            _add_flag(groups[declared.role], name, declared, defaults[name])
    return parser


def command_arguments(config: TrainConfig, path: str | None = None) -> str:
    """The flags that give this configuration back behind `--config path`, as one would type them.

    >>> command_arguments(TrainConfig(batch_schedule="32 x2 every 4ep max 128", seed=1))
    "--batch-schedule '32 x2 every 4ep max 128' --seed 1"
    """
    default = TrainConfig() if path is None else load_config(path)
    theirs = flattened(default.to_dict())
    words = [] if path is None else ["--config", path]
    declared = declarations(TrainConfig)
    for name, value in flattened(config.to_dict()).items():
        if value == theirs[name] or (value is None and declared[name].instead_of):
            continue  # the other one is given
        if isinstance(value, bool):
            words.append(flag_of(name) if value else _negated(name))
        else:
            words += [flag_of(name), _text_of(value)]
    return command_text(words)


def _text_of(value: Any) -> str:
    # All digits of a number: the flags are to give the same run.
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _negated(name: str) -> str:
    group, dot, field = name.rpartition(".")
    return flag_of(f"{group}{dot}no-{field}")


class _Words(argparse.Action):
    """Keeps the words behind a flag as one text, or as a list's items."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, " ".join(values) if self.nargs == "+" else tuple(values))


def _words(argv: Sequence[str]) -> Iterator[str]:
    """The arguments with flags as they are declared, and values behind them as words."""
    for word in argv:
        if word.startswith("--"):
            flag, is_assigned, value = word.partition("=")
            flag = flag.replace("_", "-")
            if value.startswith("-"):  # would be taken for a flag of its own
                yield f"{flag}={value}"
                continue
            yield flag
            if is_assigned:
                yield value
        else:
            yield word


def _add_flag(group: Any, name: str, declared: Declaration, default: Any) -> None:
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = f"{declared.help} (default: {'none' if shown in (None, '') else shown})"
    text = text.replace("%", "%%")
    add = functools.partial(group.add_argument, dest=name)
    if bool in declared.kinds:
        add(flag_of(name), action="store_true", help=text)
        add(_negated(name), action="store_false", help=f"not {flag_of(name)}")
        return
    words = [{int: "INT", float: "FLOAT", str: "TEXT"}.get(kind) for kind in declared.kinds]
    metavar = "|".join(filter(None, words))
    read = functools.partial(_number_or_text, kinds=declared.kinds)
    several = {"action": _Words, "nargs": "*" if declared.is_list else "+"}
    one_or_several = several if declared.is_list or declared.has_spaces else {}
    action = add(flag_of(name), help=text, metavar=metavar, type=read, **one_or_several)
    action.completions = declared.choices  # checked by the declaration, whose sentence says more


def _number_or_text(text: str, kinds: Sequence[type]) -> int | float | str:
    """A number where one is allowed, else the text, which will be checked."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if kind in kinds:
                return kind(text)
    return text
