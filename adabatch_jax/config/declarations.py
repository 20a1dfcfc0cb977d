"""How a field that users set is declared, once: default, limits, what it decides, its help."""

import dataclasses
import enum
import inspect
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from adabatch_jax.schedules.batch_size_schedules import Schedule
from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.learning_rate_text import LearningRate
from adabatch_jax.system.errors import UsageError, did_you_mean

T = TypeVar("T")


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
      help: its text for `--help`.
      role: what it decides; None for a flag of one command, which is no setting of a run.
      choices: the texts that it may be; where numbers are allowed too, beside them.
      read: reads any other value; raises a UsageError if it can't work.
      at_least: the smallest number.
      is_changeable: whether `--allow-change` lets a run that has begun go on with another.
      has_spaces: whether its text may be given as several words on a command line.
    """

    help: str
    role: Role | None
    choices: tuple[str, ...] = ()
    read: Callable[[Any], Any] | None = None
    at_least: float | None = None
    is_changeable: bool = False
    has_spaces: bool = False


def setting(default: Any, role: Role, help: str, **further: Any) -> Any:
    """Declares a setting of a run; `further` are the other attributes of `Declaration`."""
    return dataclasses.field(default=default, metadata={"is": Declaration(help, role, **further)})


def flag(default: Any, help: str, **further: Any) -> Any:
    """Declares a flag of one command, as `setting` does, which has no role."""
    return dataclasses.field(default=default, metadata={"is": Declaration(help, None, **further)})


def as_in(owner: type, name: str) -> Any:
    """Declares a field with the default and the declaration of another class's."""
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


@typing.dataclass_transform(frozen_default=True, field_specifiers=(setting, as_in))
def settings(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass of settings, whose docstring tells each of its own.

    Raises:
      TypeError: a field isn't declared with its role.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    told = []
    for field, declared in _declared(cls):
        if declared is None or declared.role is None:
            raise TypeError(
                f"{cls.__name__}.{field.name} has no role; declare it as `{field.name}: type = "
                "setting(default, role, help)`."
            )
        told.append(f"  {field.name}: {declared.help} Default: {field.default!r}.")
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Attributes:", *told])
    return cls


def declarations(cls: type) -> dict[str, Declaration]:
    """The declaration of each field by its name, those of nested settings as "data.flip"."""
    fields = dataclasses.fields(cls)
    nested = {f.name: declarations(f.type) for f in fields if dataclasses.is_dataclass(f.type)}
    own = {field.name: declared for field, declared in _declared(cls)}
    return own | {f"{name}.{n}": d for name, inner in nested.items() for n, d in inner.items()}


def _declared(cls: type) -> Iterator[tuple[dataclasses.Field, Declaration | None]]:
    for field in dataclasses.fields(cls):
        if not dataclasses.is_dataclass(field.type):
            yield field, field.metadata.get("is")


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted names.

    >>> flattened({"seed": 0, "crop": {"padding": 4}})
    {'seed': 0, 'crop.padding': 4}
    """
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def replaced(instance: T, values: Mapping[str, Any]) -> T:
    """The settings with other values for some of their fields, by the names of `declarations`."""
    own = {name: value for name, value in values.items() if "." not in name}
    for group in {name.partition(".")[0] for name in values if "." in name}:
        start = f"{group}."
        inner = {n.removeprefix(start): v for n, v in values.items() if n.startswith(start)}
        own[group] = replaced(getattr(instance, group), inner)
    return dataclasses.replace(instance, **own)


def check(instance: Any, named: Callable[[str], str] = str) -> None:
    """Checks each field against its declaration; the `__post_init__` of all settings.

    What means the same is kept as one value: "none" as None where that is allowed, whole numbers
    as floats where those are asked for, schedules and durations as their texts.

    Args:
      instance: the settings.
      named: makes a field's name what errors call it.

    Raises:
      UsageError: a value that can't work; the sentence names the field.
    """
    for field, declared in _declared(type(instance)):
        name, value, kind = named(field.name), getattr(instance, field.name), field.type
        if typing.get_origin(kind) is tuple:
            for item in value:
                _check_value(name, item, typing.get_args(kind)[:1], declared)
            continue
        value = _meant(value, allowed_types(kind))
        _check_value(name, value, allowed_types(kind), declared)
        object.__setattr__(instance, field.name, value)
    for field in dataclasses.fields(instance):
        if dataclasses.is_dataclass(field.type):
            value = getattr(instance, field.name)
            if not isinstance(value, field.type):
                raise UsageError(
                    f"{named(field.name)}: must be {field.type.__name__}, got {value!r}."
                )


def allowed_types(kind: Any) -> tuple[type, ...]:
    """The classes that an annotation allows; none where it allows anything.

    >>> allowed_types(int | None), allowed_types(str), allowed_types(Any)
    ((<class 'int'>, <class 'NoneType'>), (<class 'str'>,), ())
    """
    if kind is Any:
        return ()
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _meant(value: Any, allowed: tuple[type, ...]) -> Any:
    if isinstance(value, Schedule | LearningRate | Duration) and str in allowed:
        return str(value)
    if isinstance(value, str) and types.NoneType in allowed and value.lower() == "none":
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral) and int in allowed:
        return int(value)  # also one of numpy's
    if float in allowed and abs(value) <= sys.float_info.max:
        return float(value)
    return value


_KINDS = {int: "a whole number", float: "a number", str: "a text", types.NoneType: "none"}


def _check_value(name: str, value: Any, allowed: tuple[type, ...], declared: Declaration) -> None:
    kinds = [_KINDS.get(kind, kind.__name__) for kind in allowed]
    if allowed and type(value) not in allowed:
        raise UsageError(f"{name}: must be {' or '.join(kinds)}, got {value!r}.")
    if value is None or value in declared.choices:
        return
    if isinstance(value, str) and declared.choices:
        texts = [*(kind for kind in kinds if kind != "a text"), *declared.choices]
        hint = did_you_mean(value, declared.choices) or "."
        raise UsageError(f"{name}: {value!r} is not one of {', '.join(texts)}{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name}: must be finite, got {value}.")
    if declared.at_least is not None and not isinstance(value, str) and value < declared.at_least:
        raise UsageError(f"{name}: must be at least {declared.at_least}, got {value}.")
    if declared.read is not None:
        try:
            declared.read(value)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
