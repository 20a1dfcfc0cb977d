"""How a field that users set is declared, once: default, limits, what it decides, its help."""

import dataclasses
import enum
import inspect
import math
import numbers
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from adabatch_jax.config.own_functions import reference_to
from adabatch_jax.schedules.batch_size_schedules import Schedule
from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.learning_rate_text import LearningRate
from adabatch_jax.system.errors import UsageError, did_you_mean

T = TypeVar("T")

_INT_LIMIT = 2**31  # arrays are indexed, and steps counted, in int32


class Role(enum.Enum):
    """What a setting decides, and so what happens where a run goes on with another value."""

    NUMBERS = "what decides the numbers: a run goes on with the same"
    FUTURE = "what is still to come: a run may go on with another"
    LAYOUT = "how it is computed: the same numbers, up to rounding"
    OPERATION = "how it is operated: what it computes stays the same"


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What is said about a field beside its type and its default.

    Attributes:
      role: None for a flag of one command, which is no setting of a run.
      read: reads a text; raises a UsageError if it can't work.
      below: what a number must be less than; where nothing is said, 2**31 of a whole number.
      is_changeable: whether `--allow-change` lets a run that has begun go on with another.
      instead_of: the field of the same class that must be none where this one is given.
      has_spaces: whether its text may be given as several words on a command line.
      kinds: the classes that its type allows; none where it allows anything.
      choices: the texts that its type allows, where not any.
      is_list: whether it is a tuple of those.
    """

    role: Role | None
    help: str
    read: Callable[[str], Any] | None = None
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    is_changeable: bool = False
    instead_of: str | None = None
    has_spaces: bool = False
    kinds: tuple[type, ...] = ()
    choices: tuple[str, ...] = ()
    is_list: bool = False

    def of(self, annotation: Any) -> "Declaration":
        """This declaration with the classes, and the texts if it has none yet, of an annotation."""
        is_list = typing.get_origin(annotation) is tuple
        is_one = typing.get_origin(annotation) in (None, typing.Literal)
        allowed = (annotation,) if is_one else typing.get_args(annotation)
        literals = [a for a in allowed if typing.get_origin(a) is typing.Literal]
        choices = tuple(text for literal in literals for text in typing.get_args(literal))
        kinds = (str if a in literals else a for a in allowed)
        kinds = tuple(kind for kind in kinds if kind not in (Any, ...))
        return dataclasses.replace(
            self, kinds=kinds, choices=self.choices or choices, is_list=is_list
        )


def setting(default: Any, role: Role | None, help: str, **further: Any) -> Any:
    """Declares a field; `further` are the other attributes of `Declaration`."""
    return dataclasses.field(default=default, metadata={"is": Declaration(role, help, **further)})


def flag(default: Any, help: str, **further: Any) -> Any:
    """Declares a flag of one command, which is no setting of a run."""
    return setting(default, None, help, **further)


def flag_of(name: str) -> str:
    """A field's flag, such as --data.crop-padding."""
    return f"--{name.replace('_', '-')}"


def as_in(owner: type, name: str) -> Any:
    """Declares a field with the default and the declaration of another class's."""
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    return dataclasses.field(
        default=field.default, metadata={"is": field.metadata["is"].of(field.type)}
    )


@typing.dataclass_transform(frozen_default=True)  # what is assigned is a default to checkers
def settings(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass of settings, whose docstring tells each of its own."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    told = []
    for field in dataclasses.fields(cls):
        declared = field.metadata.get("is")
        if dataclasses.is_dataclass(field.type):
            continue
        if declared is None or declared.role is None:
            raise TypeError(
                f"{cls.__name__}.{field.name} has no role; declare it as `{field.name}: type = "
                "setting(default, role, help=...)`."
            )
        told.append(f"  {field.name}: {declared.help} Default: {field.default!r}.")
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Attributes:", *told])
    return cls


def declarations(cls: type) -> dict[str, Declaration]:
    """The declaration of each field by its name, those of nested settings as "data.flip"."""
    found = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            inner = declarations(field.type)
            found |= {f"{field.name}.{name}": declared for name, declared in inner.items()}
        else:
            found[field.name] = field.metadata["is"].of(field.type)
    return found


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted names, such as "data.flip"."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def replaced(instance: T, values: Mapping[str, Any]) -> T:
    """The settings with other values for some of their fields, by the names of `declarations`.

    A value for a field that stands instead of another takes the other's place.
    """
    own = {name: value for name, value in values.items() if "." not in name}
    for name, declared in declarations(type(instance)).items():
        if own.get(name) is not None and declared.instead_of is not None:
            own.setdefault(declared.instead_of, None)
    for group in {name.partition(".")[0] for name in values if "." in name}:
        start = f"{group}."
        inner = {n.removeprefix(start): v for n, v in values.items() if n.startswith(start)}
        own[group] = replaced(getattr(instance, group), inner)
    return dataclasses.replace(instance, **own)


def check(instance: Any, named: Callable[[str], str] = str) -> None:
    """Checks each field as it is declared; the `__post_init__` of all settings.

    What means the same is kept as one value: "none" as None where that is allowed, whole numbers
    as floats where those are asked for, schedules and durations as their texts. Errors call a
    field what `named` makes of its name.
    """
    for field in dataclasses.fields(instance):
        name, value = named(field.name), getattr(instance, field.name)
        if dataclasses.is_dataclass(field.type):
            if not isinstance(value, field.type):
                raise UsageError(f"{name}: must be {field.type.__name__}, got {value!r}.")
            continue
        declared = field.metadata["is"].of(field.type)
        if declared.is_list:
            value = tuple(_checked(name, item, declared) for item in value)
        else:
            value = _checked(name, value, declared)
        object.__setattr__(instance, field.name, value)
    _check_alternatives(instance, named)


def _check_alternatives(instance: Any, named: Callable[[str], str]) -> None:
    for field in dataclasses.fields(instance):
        declared = field.metadata.get("is")
        other = declared and declared.instead_of
        if other and None not in (getattr(instance, field.name), getattr(instance, other)):
            raise UsageError(f"{named(field.name)} and {named(other)}: give one of them, not both.")


_KINDS = {int: "a whole number", float: "a number", str: "a text", types.NoneType: "none"}


def _checked(name: str, value: Any, declared: Declaration) -> Any:
    """What is meant by a value; raises a UsageError where it can't work."""
    try:
        value = _meant(value, declared.kinds)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    kinds = [_KINDS.get(kind, kind.__name__) for kind in declared.kinds]
    if kinds and type(value) not in declared.kinds:
        raise UsageError(f"{name}: must be {' or '.join(kinds)}, got {value!r}.")
    if isinstance(value, str) and declared.choices and value not in declared.choices:
        others = [*(kind for kind in kinds if kind != "a text"), *declared.choices]
        hint = did_you_mean(value, declared.choices) or "."
        raise UsageError(f"{name}: {value!r} is not one of {', '.join(others)}{hint}")
    if isinstance(value, str) and declared.read is not None:
        try:
            read = declared.read(value)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        if isinstance(read, int | float) and type(read) in declared.kinds:
            value = read  # such as a size in bytes, where a number is allowed too
    if isinstance(value, int | float):
        below = _INT_LIMIT if declared.below is None and type(value) is int else declared.below
        for limit, text, is_met in (
            (declared.at_least, "at least", operator.ge),
            (declared.above, "above", operator.gt),
            (below, "below", operator.lt),
        ):
            if limit is not None and not is_met(value, limit):
                raise UsageError(f"{name}: must be {text} {limit}, got {value}.")
        if not math.isfinite(value):
            raise UsageError(f"{name}: must be finite, got {value}.")
    return value


def _meant(value: Any, kinds: tuple[type, ...]) -> Any:
    if isinstance(value, Schedule | LearningRate | Duration) and str in kinds:
        if isinstance(value, Schedule) and not value.has_text:
            raise UsageError(
                f"{value} is a function, which no text of a configuration can hold; list its sizes "
                "with piecewise_constant, or train with make_plan and fit."
            )
        return str(value)
    if isinstance(value, types.FunctionType) and str in kinds:
        return reference_to(value)
    if isinstance(value, str) and types.NoneType in kinds and value.lower() == "none":
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral) and int in kinds:
        return int(value)  # also one of numpy's
    return float(value) if float in kinds and abs(value) <= sys.float_info.max else value
