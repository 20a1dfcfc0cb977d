"""Flags that take a batch schedule from elsewhere: a published recipe, or another system's flags."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from adabatch_jax.config.declarations import check, flag, flag_of, replaced
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.schedules.dialect_reading import MegatronSteps
from adabatch_jax.schedules.durations import run_duration
from adabatch_jax.schedules.learning_rate_text import coupling_power
from adabatch_jax.schedules.recipes.published import recipes
from adabatch_jax.schedules.recipes.scaling import open_end
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.system.errors import UsageError


def _ratio(text: str) -> Fraction:
    try:
        ratio = Fraction(text)
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(0)
    if ratio <= 0:
        raise UsageError(f"{text!r} is no ratio above 0, write it as 1/64.")
    return ratio


@dataclasses.dataclass(frozen=True)
class RecipeFlags:
    """What becomes batch schedule, rate, coupling and length of the configuration."""

    recipe: str | None = flag(
        None,
        "A published run to take batch schedule, rate, coupling and length from, such as "
        "llama3-405b; --duration scales it where its length is known.",
        choices=tuple(recipes),
    )
    batch_scale: str | None = flag(
        None, "What the recipe's batch sizes are multiplied by, such as 1/64.", read=_ratio
    )
    recipe_stages: int | None = flag(
        None, "How many sizes the recipe's ramp has, where that wasn't published.", at_least=2
    )
    recipe_length: str | None = flag(
        None,
        "How long the recipe's own run was, such as 300Btok, where that wasn't published.",
        read=run_duration,
    )
    recipe_rate: float | None = flag(
        None, "Which rate the recipe begins with, where that wasn't published.", above=0
    )
    recipe_batch: int | None = flag(
        None, "Which batch the recipe begins with, where that wasn't published.", at_least=1
    )
    from_megatron: str | None = flag(
        None,
        'Batch schedule of Megatron-LM: the value of its --step-batch-size-schedule, or "'
        '--rampup-batch-size 16 16 5859375 --global-batch-size 1536".',
        has_spaces=True,
    )
    from_levanter: str | None = flag(
        None, "Batch schedule of Levanter: the YAML of its train_batch_size.", has_spaces=True
    )

    def __post_init__(self):
        check(self, flag_of)
        given = self.schedule_flags
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: give one of them.")
        parts = ("batch_scale", "recipe_stages", "recipe_length", "recipe_rate", "recipe_batch")
        alone = [flag_of(name) for name in parts if getattr(self, name) is not None]
        if alone and self.recipe is None:
            raise UsageError(f"{alone[0]}: is of a recipe; give --recipe too.")

    @property
    def schedule_flags(self) -> list[str]:
        """The flags given that take the place of --batch-schedule."""
        names = ("recipe", "from_megatron", "from_levanter")
        return [flag_of(name) for name in names if getattr(self, name) is not None]


_FLAGS = {"stages": "recipe_stages", "rate": "recipe_rate", "first_batch": "recipe_batch"}


def with_recipe(
    flags: RecipeFlags,
    config: TrainConfig,
    changed: TrainConfig,
    length: str | None,
    has_open_end: bool,
) -> tuple[TrainConfig, Sequence[str]]:
    """The configuration with what the flags take from elsewhere, and sentences to tell.

    Args:
      changed: the configuration with all other flags, which says how many tokens an example has.
      length: the run's length where the command line gives one.
      has_open_end: whether it is only looked at; see `Recipe.run`.
    """
    theirs = {"megatron": flags.from_megatron, "levanter": flags.from_levanter}
    dialect = next((name for name, text in theirs.items() if text is not None), None)
    if dialect is not None:
        shows_end = length is None and has_open_end
        return _from_dialect(dialect, theirs[dialect], config, changed, shows_end)
    if flags.recipe is None:
        return config, []
    run = recipes[flags.recipe].run(
        length,
        flags.batch_scale or 1,
        stages=flags.recipe_stages,
        tokens_per_example=changed.tokens_of_example,
        rate=flags.recipe_rate,
        first_batch=flags.recipe_batch,
        recipe_length=flags.recipe_length,
        has_open_end=has_open_end,
        named=lambda name: flag_of(_FLAGS.get(name, name)),
    )
    fields = {
        "batch_schedule": run.batch_schedule,
        "lr": run.learning_rate,
        "coupling": run.coupling,
        "duration": run.duration,
        # A text's sequences have a length of their own.
        "tokens_per_example": None if changed.sequence_length else run.tokens_per_example,
        "reference_batch_size": None,
    }
    return replaced(config, fields), run.notes


def not_of_the_recipe(recipes: TrainConfig, changed: TrainConfig) -> list[str]:
    """A sentence on the flags that say otherwise than the recipe's configuration, if there are any."""
    names = [
        name
        for name in ("lr", "coupling", "reference_batch_size")
        if getattr(changed, name) != getattr(recipes, name)
    ]
    flags = (f"{flag_of(name)} {getattr(changed, name)}" for name in names)
    return [f"yours, not the recipe's: {', '.join(flags)}."] if names else []


def _from_dialect(
    dialect: str,
    text: str,
    config: TrainConfig,
    changed: TrainConfig,
    has_open_end: bool,
) -> tuple[TrainConfig, Sequence[str]]:
    try:
        schedule = parse_schedule(text, dialect)
    except UsageError as error:
        raise UsageError(f"--from-{dialect}: {error}") from None
    tokens_per_example = changed.tokens_of_example
    fields, notes = {"batch_schedule": str(schedule)}, [f"batch schedule: {schedule}."]
    if coupling_power(changed.coupling):
        notes.append(
            f"the rate is this configuration's, with its coupling, {changed.coupling}; that of "
            f"{dialect} doesn't follow the batch (--coupling none)."
        )
    if isinstance(schedule, MegatronSteps) and tokens_per_example is None:
        notes.append("its thresholds are samples; with --tokens-per-example they are tokens.")
    end = open_end(schedule, tokens_per_example) if has_open_end else None
    if end is not None:
        fields["duration"] = str(end)
        notes.append(f"shown up to 1.25 times the last threshold, {end}; --duration sets it.")
    return replaced(config, fields), notes
