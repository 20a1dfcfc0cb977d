"""The configuration of a training run, and what it says about it."""

import dataclasses
from typing import Any

from adabatch_jax.config.declarations import declarations, flattened, replaced, settings
from adabatch_jax.config.settings import Settings, settings_digest
from adabatch_jax.schedules.batch_size_schedules import Schedule
from adabatch_jax.schedules.durations import Duration, parse_duration
from adabatch_jax.schedules.learning_rate_text import LearningRate, parse_learning_rate
from adabatch_jax.schedules.plan import BatchPlan, make_plan
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.schedules.text_reader import decimal_text, exact
from adabatch_jax.system.errors import UsageError, did_you_mean


@settings
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
        if not isinstance(content, dict):
            raise UsageError(f"{origin} must be an object with fields, got {content!r}.")
        fields, names = flattened(content), declarations(cls)
        for name in fields:
            if name not in names:
                raise UsageError(
                    f"{origin} has an unknown field {name!r}{did_you_mean(name, names) or '.'}"
                )
        return replaced(cls(), fields)
