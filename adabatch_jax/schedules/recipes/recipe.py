"""A published recipe, and the run that it makes: as it was published, or scaled to another one."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from adabatch_jax.schedules.batch_size_schedules import LinearRamp, Schedule
from adabatch_jax.schedules.durations import Duration, run_duration
from adabatch_jax.schedules.growth_with_decay import schedule_and_rate
from adabatch_jax.schedules.learning_rate_text import LearningRate, parse_learning_rate
from adabatch_jax.schedules.plan import BatchPlan, untold_plan
from adabatch_jax.schedules.recipes.scaling import (
    open_end,
    scaled_schedule,
    share_of,
    stretched_rate,
    stretched_schedule,
    with_equal_updates,
)
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.schedules.text_reader import exact, positive_integer
from adabatch_jax.system.errors import UsageError

STAGES, RATE = "STAGES", "RATE"

_ASKED = {
    "stages": "how many sizes its ramp has",
    "tokens_per_example": "how many tokens a sequence has",
    "rate": "which rate it begins with",
    "first_batch": "which batch it begins with",
    "duration": "how long it is",
}


@dataclasses.dataclass(frozen=True)
class RecipeRun:
    """What a recipe makes of a run, in texts as a configuration has them.

    `notes` are sentences for whoever runs it: where the figures are from, what was changed, and what
    is not of the recipe but its user's.
    """

    batch_schedule: str
    learning_rate: str
    coupling: str
    duration: str
    tokens_per_example: int | None
    notes: tuple[str, ...]

    def plan(self, num_examples: int | None = None) -> BatchPlan:
        """The plan, by default of an endless stream of examples."""
        tokens = self.tokens_per_example
        return untold_plan(
            self.batch_schedule, num_examples, self.duration, tokens_per_example=tokens
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The published figures of a run; those that nobody published are asked for.

    Attributes:
      name: as `--recipe` takes it.
      model: what was trained.
      source: the paper, or the repository and file.
      batch_schedule: its text; `STAGES` stands for an unpublished number of sizes.
      learning_rate: its text; `RATE` stands for an unpublished rate.
      coupling: how the rate follows the batch.
      duration: the run's length; None where it wasn't published.
      counts: what the sizes count: "examples", "tokens", or "first batches", multiples of the first.
      sequence_length: tokens of an example; None where it wasn't published.
      has_equal_updates: whether a ramp's sizes last equally many updates, and not samples.
      notes: what the source says beside that.

    >>> from adabatch_jax import recipes
    >>> recipe = recipes["deepseek-v3"]
    >>> recipe.run(stages=5, tokens_per_example=4096).plan().batch_sizes
    (3072, 6144, 9216, 12288, 15360)
    """

    name: str
    model: str
    source: str
    batch_schedule: str
    learning_rate: str
    coupling: str = "none"
    duration: str | None = None
    counts: Literal["examples", "tokens", "first batches"] = "examples"
    sequence_length: int | None = None
    has_equal_updates: bool = False
    notes: tuple[str, ...] = ()

    def run(
        self,
        duration: str | None = None,
        batch_scale: str | float | Fraction = 1,
        *,
        stages: int | None = None,
        tokens_per_example: int | None = None,
        rate: str | float | None = None,
        first_batch: int | None = None,
        recipe_length: str | None = None,
        has_open_end: bool = True,
        named: Callable[[str], str] = "`{}`".format,
    ) -> RecipeRun:
        """The recipe as it was published, or scaled to a run of another size.

        Args:
          duration: the length of the run; None: the recipe's. Where the recipe's own length is
            known, its thresholds stay at the same shares of the run, and elsewhere where they are.
          batch_scale: what its batch sizes are multiplied by, such as "1/64".
          stages: how many sizes a ramp has, both ends included, where that wasn't published.
          tokens_per_example: a sequence's length; None: the published one.
          rate: what the rate begins with where that wasn't published; None: 1, so that rates are
            multiples of one's own.
          first_batch: what sizes are multiples of where they are published so.
          recipe_length: the length of the recipe's own run, where that wasn't published.
          has_open_end: whether an unpublished length may be 1.25 times the last threshold, and an
            unpublished rate 1, as for a look at it; a run needs both.
          named: how errors and notes call an argument.

        Raises:
          UsageError: an argument that the recipe needs isn't given, which is named, or can't work.

        >>> from adabatch_jax import recipes
        >>> run = recipes["minimax-01"].run("1Btok", "1/1000", tokens_per_example=1000)
        >>> run.batch_schedule
        '16, 69/104%: 32, 395/52%: 64, 1175/26%: 128'
        """
        return _Making(
            self, duration, exact(batch_scale, named("batch_scale")), stages, tokens_per_example,
            rate, first_batch, recipe_length, has_open_end, named,
        ).run()  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Making:
    """A recipe and what its user says, on the way to a run."""

    recipe: Recipe
    duration: str | None
    batch_scale: Fraction
    stages: int | None
    given_tokens: int | None
    rate: str | float | None
    first_batch: int | None
    recipe_length: str | None
    has_open_end: bool
    named: Callable[[str], str]

    @property
    def tokens_per_example(self) -> int | None:
        return self.given_tokens or self.recipe.sequence_length

    @property
    def length(self) -> Duration | None:
        """How long the recipe's own run is, as far as anybody says."""
        text = self.recipe.duration or self.recipe_length
        return None if text is None else run_duration(text)

    def run(self) -> RecipeRun:
        self.check()
        unit = self.examples_per_size()
        schedule, rounded = scaled_schedule(self.schedule(), unit * self.batch_scale)
        rate = self.learning_rate()
        notes = [self.source_note()]
        if self.length is None or self.duration is None:
            run, rate, note = self.end(rate)
            notes += note
        else:
            run = self.run_length()
            published, _ = scaled_schedule(self.schedule(), unit)
            tokens = self.tokens_per_example
            share = share_of(untold_plan(published, None, self.length, tokens_per_example=tokens))
            schedule, rate = stretched_schedule(schedule, share), stretched_rate(rate, share)
        notes += [*self.changes(rounded), *self.own_figures()]
        notes += [f"{self.recipe.name}: {note}." for note in self.recipe.notes]
        texts = str(schedule), str(rate), self.recipe.coupling, str(run)
        return RecipeRun(*texts, self.tokens_per_example, tuple(notes))

    def check(self) -> None:
        """Names all arguments that the recipe needs and nobody gave, or one that it has."""
        for name in ("stages", "given_tokens", "first_batch"):
            if (value := getattr(self, name)) is not None:
                positive_integer(value, name.replace("given_tokens", "tokens_per_example"))
        if self.rate is not None and exact(self.rate, "rate") <= 0:
            raise UsageError(f"{self.named('rate')} must be above 0, got {self.rate}.")
        asked, needs_all = self.asked(), self.asked(needs_all=True)
        if missing := [name for name in asked if getattr(self, name) is None]:
            raise UsageError(
                f"recipe {self.recipe.name}: nobody published "
                f"{' and '.join(_ASKED[name] for name in missing)}; give "
                f"{' and '.join(map(self.named, missing))}."
            )
        given = (name for name in ("stages", "rate", "first_batch") if getattr(self, name))
        if (name := next((name for name in given if name not in needs_all), None)) is not None:
            raise UsageError(f"{self.named(name)}: recipe {self.recipe.name} has its own.")
        if None not in (self.recipe_length, self.recipe.duration):
            raise UsageError(
                f"{self.named('recipe_length')}: recipe {self.recipe.name} has its own, "
                f"{self.recipe.duration}."
            )
        if self.batch_scale <= 0:
            raise UsageError(
                f"{self.named('batch_scale')} must be above 0, got {self.batch_scale}."
            )

    def asked(self, needs_all: bool = False) -> list[str]:
        """What the recipe doesn't say, less what may stay open where only a look is wanted."""
        recipe, needs_all = self.recipe, needs_all or not self.has_open_end
        texts = recipe.batch_schedule, recipe.learning_rate, recipe.duration, self.duration
        end = open_end(parse_schedule(recipe.batch_schedule.replace(STAGES, "2")))
        is_asked = {
            "stages": STAGES in recipe.batch_schedule,
            "tokens_per_example": recipe.counts == "tokens"
            or any("tok" in (t or "") for t in texts),
            "rate": needs_all and RATE in recipe.learning_rate,
            "first_batch": recipe.counts == "first batches",
            "duration": self.length is None and (needs_all or end is None),
        }
        return [name for name, is_needed in is_asked.items() if is_needed]

    def schedule(self) -> Schedule:
        """The published sizes, in what they count."""
        schedule, _ = self.schedule_and_rate()
        if self.recipe.has_equal_updates and isinstance(schedule, LinearRamp):
            return with_equal_updates(schedule)
        return schedule

    def learning_rate(self) -> LearningRate:
        """The published rate, or what the batch leaves of it where that follows it."""
        return self.schedule_and_rate()[1]

    def schedule_and_rate(self) -> tuple[Schedule, LearningRate]:
        schedule = parse_schedule(self.recipe.batch_schedule.replace(STAGES, str(self.stages)))
        rate = parse_learning_rate(self.recipe.learning_rate.replace(RATE, str(self.rate or 1)))
        return schedule_and_rate(schedule, rate)

    def examples_per_size(self) -> Fraction:
        if self.recipe.counts == "first batches":
            return Fraction(self.first_batch)
        return Fraction(1, self.tokens_per_example if self.recipe.counts == "tokens" else 1)

    def run_length(self) -> Duration:
        run = run_duration(self.duration)
        if run.unit == "st":
            raise UsageError(
                f"{self.named('duration')}: what is scaled keeps its shares of the samples, which "
                f"steps don't tell, got {str(run)!r}; give tokens (tok), samples (sp) or epochs (ep)."
            )
        return run

    def end(self, rate: LearningRate) -> tuple[Duration, LearningRate, list[str]]:
        """The length of a run whose thresholds stay where they are, its rate, and why."""
        end = open_end(self.schedule())
        if self.length is not None:
            return self.length, rate, []
        length = self.named("recipe_length")
        if self.duration is not None:
            note = (
                f"its length isn't published, so that of the run, {self.duration}, moves none of its "
                f"thresholds; with {length}, what it had, they keep their shares."
            )
            return run_duration(self.duration), rate, [] if end is None else [note]
        note = f"its length isn't published: shown up to 1.25 times the last threshold, {end}"
        beginning = _without_end(rate)
        if beginning != rate:
            note += "; the rate falls to the run's end, so only its beginning is shown"
        return end, beginning, [f"{note} ({length} sets it)."]

    def source_note(self) -> str:
        recipe = self.recipe
        counted = "" if recipe.counts == "examples" else f" ({recipe.counts})"
        length = recipe.duration or "not published"
        return (
            f"recipe {recipe.name} ({recipe.model}; {recipe.source}), as published: batch "
            f"{recipe.batch_schedule}{counted}; rate {recipe.learning_rate}; coupling "
            f"{recipe.coupling}; length {length}."
        )

    def changes(self, rounded: list[str]) -> list[str]:
        """What is other than published."""
        changed, published = [], self.recipe.sequence_length
        if None not in (self.duration, self.length):
            changed.append(
                f"{self.duration} in place of {self.length}, with each threshold at its share of them"
            )
        if self.batch_scale != 1:
            changed.append(f"batches x {self.batch_scale}")
        if changed:
            changed.append("the rate keeps its values")
        if published and self.tokens_per_example != published:
            changed.append(
                f"{self.tokens_per_example:,} tokens an example in place of {published:,}"
            )
        notes = [f"changed: {'; '.join(changed)}."] if changed else []
        if rounded:
            notes.append(f"batches are rounded to whole examples: {', '.join(rounded)}.")
        return notes

    def own_figures(self) -> list[str]:
        """What isn't the recipe's but its user's, or nobody's."""
        given = {
            "stages": "sizes in the ramp",
            "given_tokens": "tokens an example",
            "rate": "as the rate",
            "first_batch": "as the first batch",
            "recipe_length": "as the length of the recipe",
        }
        own = [
            f"{getattr(self, name)} {what}" for name, what in given.items() if getattr(self, name)
        ]
        notes = [f"yours, not the recipe's: {', '.join(own)}."] if own else []
        if self.rate is None and RATE in self.recipe.learning_rate:
            notes.append(
                f"no rate is published: those shown are multiples of {self.named('rate')}."
            )
        return notes


def _without_end(rate: LearningRate) -> LearningRate:
    """The rate, or its beginning where it falls to an end of the run that isn't known."""
    falls = [part.ends_the_run or (part.length is None and part.end_value) for part in rate.parts]
    return dataclasses.replace(rate, parts=()) if any(falls) else rate
