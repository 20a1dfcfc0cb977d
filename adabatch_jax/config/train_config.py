"""The configuration of a training run: typed, frozen, validated. Importing it is quick."""

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from adabatch_jax.config.choices import ACCUMULATIONS, AUTO, INPUTS
from adabatch_jax.config.layout import LayoutOptions
from adabatch_jax.config.policies import parse_nan_policy, parse_score
from adabatch_jax.config.settings import DataSettings, Settings, settings_digest
from adabatch_jax.schedules.batch_size_schedules import Schedule
from adabatch_jax.schedules.durations import Duration, parse_duration
from adabatch_jax.schedules.learning_rate_text import (
    LearningRate,
    coupling_power,
    parse_learning_rate,
)
from adabatch_jax.schedules.plan import BatchPlan, make_plan
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.schedules.strides import REMAINDERS
from adabatch_jax.schedules.text_reader import decimal_text, exact
from adabatch_jax.system.errors import UsageError, did_you_mean
from adabatch_jax.system.quantities import parse_bytes

OPTIMIZERS = ("sgd", "adamw")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """A checked configuration; the fields are those of `Settings`.

    Schedules, learning rates and durations may be given as objects; they are kept as texts.

    Raises:
      UsageError: a value that can't work; the sentence names the field.

    >>> config = TrainConfig(batch_schedule="64 x2 every 5ep max 512", epochs=20)
    >>> config.plan(num_examples=1442).batch_sizes
    (64, 128, 256, 512)
    >>> TrainConfig(optimizer="sdg")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: optimizer: 'sdg' is not one of sgd, adamw; did you mean 'sgd'?
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        for field in dataclasses.fields(self.data):
            _typed(field, getattr(self.data, field.name), prefix="data.")
        if self.name is not None and not re.fullmatch(r"[\w][\w.+=-]*", self.name):
            raise UsageError(
                f"name: {self.name!r} can't be a folder's name; use letters, digits, '_' and '-'."
            )
        for name, reader in _TEXT_FIELDS.items():
            _checked(name, getattr(self, name), reader)
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        for name in ("microbatch_size", *_OPTIONAL_TEXT_FIELDS):
            if str(getattr(self, name)).lower() == "none":  # as `--help` spells it
                object.__setattr__(self, name, None)
        for name, minimum in _MINIMA.items():
            value = getattr(self, name)
            if name in _AUTOMATIC and isinstance(value, str):
                if value != AUTO:
                    none = ", auto or none" if name == "microbatch_size" else " or auto"
                    raise UsageError(f"{name}: must be a number{none}, got {value!r}.")
            elif value is not None and not value >= minimum:
                raise UsageError(f"{name}: must be at least {minimum}, got {value}.")
        for name, reader in _OPTIONAL_TEXT_FIELDS.items():
            if getattr(self, name) is not None:
                _checked(name, getattr(self, name), reader)
        LayoutOptions(  # checks that these go together
            self.microbatch_size, self.steps_per_dispatch, self.accumulation
        )
        if self.seed >= 2**32:
            raise UsageError(f"seed: must be below 2**32, got {self.seed}.")
        if not 0 < self.epochs < math.inf:
            raise UsageError(f"epochs: must be above 0 and finite, got {self.epochs}.")
        if "\0" in (self.data.dir or ""):
            raise UsageError(f"data.dir: {self.data.dir!r} can't be a folder's name.")
        for name in ("crop_padding", "image_size"):
            value = getattr(self.data, name)
            if value is not None and value < (0 if name == "crop_padding" else 1):
                raise UsageError(f"data.{name}: can't be {value}.")

    @property
    def schedule(self) -> Schedule:
        """What the batch size should be."""
        return parse_schedule(self.batch_schedule)

    @property
    def learning_rate(self) -> LearningRate:
        """The base learning rate."""
        return parse_learning_rate(self.lr)

    @property
    def duration(self) -> Duration:
        """The run's length."""
        return parse_duration(f"{decimal_text(exact(self.epochs, 'epochs'))}ep")

    @property
    def run_name(self) -> str:
        """The name, or one made of dataset and model."""
        return self.name or f"{self.dataset}-{self.model}".replace("/", "_").replace(":", "_")

    @property
    def digest(self) -> str:
        """A hash of all settings, in hex."""
        return settings_digest(self.to_dict())

    def plan(self, num_examples: int, divisible_by: int = 1) -> BatchPlan:
        """The plan on a dataset of this size."""
        plan = make_plan(self.schedule, num_examples, self.duration, self.remainder, divisible_by)
        group = self.batchnorm_group_size
        for size in plan.batch_sizes:
            rows = min(self.microbatch_size, size) if type(self.microbatch_size) is int else size
            if group is not None and rows % group:
                raise UsageError(
                    f"batchnorm_group_size: {group} must divide the {rows} examples that are "
                    f"computed at a time where the batch is {size}; set microbatch_size to a "
                    f"multiple of {group}, or choose another group."
                )
        return plan

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; `from_dict` gives them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Any, origin: str = "the configuration") -> "TrainConfig":
        """Makes the configuration that `to_dict` described.

        Args:
          content: field names and values; fields that are missing have their defaults.
          origin: what to call it in an error.
        """
        fields = _known_fields(Settings, content, origin)
        if "data" in fields:
            fields["data"] = DataSettings(
                **_known_fields(DataSettings, fields["data"], f"data in {origin}")
            )
        return cls(**fields)


_TEXT_FIELDS: dict[str, Callable[[str], Any]] = {
    "batch_schedule": parse_schedule,
    "lr": parse_learning_rate,
    "eval_every": lambda text: check_period(text),
    "checkpoint_every": lambda text: check_period(text),
    "log_every": lambda text: check_period(text),
    "coupling": coupling_power,
    "on_nan": parse_nan_policy,
}
_OPTIONAL_TEXT_FIELDS: dict[str, Callable[[str], Any]] = {
    "device_memory": parse_bytes,
    "keep_every": lambda text: check_period(text),
    "keep_best": parse_score,
}
_CHOICES = {
    "optimizer": OPTIMIZERS,
    "compute_dtype": COMPUTE_DTYPES,
    "remainder": REMAINDERS,
    "accumulation": ACCUMULATIONS,
    "input": INPUTS,
}
_AUTOMATIC = ("microbatch_size", "steps_per_dispatch")
_MINIMA = {
    "reference_batch_size": 1,
    "momentum": 0,
    "weight_decay": 0,
    "seed": 0,
    "microbatch_size": 1,
    "steps_per_dispatch": 1,
    "batchnorm_group_size": 1,
    "batchnorm_reference_size": 1,
    "eval_batch_size": 1,
    "keep_checkpoints": 1,
}


def check_period(text: str) -> Duration:
    """Reads how often something happens, longer than nothing."""
    period = parse_duration(text)
    if period.value <= 0:
        raise UsageError(f"must be longer than nothing, got {text!r}.")
    return period


def _known_fields(cls: type, content: Any, origin: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UsageError(f"{origin} must be an object with fields, got {content!r}.")
    names = [field.name for field in dataclasses.fields(cls)]
    for key in content:
        if key not in names:
            raise UsageError(
                f"{origin} has an unknown field {key!r}{did_you_mean(key, names) or '.'}"
            )
    return dict(content)


def _typed(field: dataclasses.Field, value: Any, prefix: str = "") -> Any:
    """Checks a value against its field's type; whole numbers become floats where asked for."""
    allowed = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else None
    allowed = allowed or (field.type,)
    if isinstance(value, Schedule | LearningRate | Duration) and str in allowed:
        return str(value)
    if type(value) is int and float in allowed and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) in allowed:
        return value
    wanted = " or ".join("nothing" if t is type(None) else t.__name__ for t in allowed)
    raise UsageError(f"{prefix}{field.name}: must be {wanted}, got {value!r}.")


def _checked(name: str, value: str, reader: Callable[[str], Any]) -> None:
    try:
        reader(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = did_you_mean(value, choices) or "."
        raise UsageError(f"{name}: {value!r} is not one of {', '.join(choices)}{hint}")
