"""Where a run is, in words: the parts that every display of progress is made of."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from adabatch_jax.system.number_texts import count_text, duration_text, loss_text, percent_text

if TYPE_CHECKING:
    from adabatch_jax.schedules.plan import BatchPlan

# Widths of the values whose greatest width the plan doesn't know.
_WIDTHS = {"lr": 9, "loss": 8, "speed": 12, "left": 10}
# What is said of a network of tokens, the first that is known.
BITS = {"test_bits_per_byte": "test bits/byte", "test_bits_per_token": "test bits/token"}
# Values that say themselves what they are.
_WITHOUT_LABEL = ("speed", "left")


def status_parts(
    plan: "BatchPlan", row: Mapping[str, Any], step: int, pace: float | None
) -> dict[str, str]:
    """Describes a moment of a run, `pace` being examples per second of late, all included.

    Returns label -> value, as far as known, in the order to be shown. The values are padded, so
    that those of one plan align.
    """
    phase = plan.phase_at(min(max(step - 1, 0), plan.num_steps - 1))
    num_phases, max_size = len(plan.phases), max(plan.batch_sizes)
    speed = row.get("examples_per_second") or pace
    pace = pace or speed
    parts = {
        **_position(plan, step),
        "step": _right(step, plan.num_steps),
        "phase": f"{_right(phase.index + 1, num_phases)}/{num_phases}",
        "batch": _right(phase.batch_size, max_size),
    }
    if "learning_rate" in row:
        parts["lr"] = f"{row['learning_rate']:.4g}"
    if "train_loss" in row:
        parts["loss"] = loss_text(row["train_loss"])
    if speed:
        tokens = plan.tokens_per_example
        unit = "ex/s" if tokens is None else "tok/s"
        parts["speed"] = f"{count_text(speed * (tokens or 1))} {unit}"
    if pace and step < plan.num_steps:
        seconds = (plan.num_samples - plan.samples_at(step)) / pace
        parts["left"] = f"{duration_text(seconds)} left"
    return {**parts, **_evaluated(row)}


def result_text(figures: Mapping[str, Any]) -> str:
    """What a run reached on its test set, as far as that was measured.

    >>> result_text({"step": 30, "test_loss": 0.1, "test_accuracy": 0.98765})
    'test accuracy 98.77 %'
    >>> result_text({"step": 30, "test_loss": 0.1, "test_bits": 3.8774})
    'test loss 0.1000, test bits 3.8774'
    """
    accuracy = figures.get("test_accuracy")
    if isinstance(accuracy, float) and not BITS.keys() & figures.keys():
        return f"test accuracy {100 * accuracy:.2f} %"
    return ", ".join(f"{label} {value}" for label, value in _evaluated(figures).items())


def _evaluated(row: Mapping[str, Any]) -> dict[str, str]:
    """The figures of the test set that are shown: of a text bits, else accuracy, or the first two."""
    figures = {name: value for name, value in row.items() if is_of_test_set(name)}
    figures = {name: value for name, value in figures.items() if isinstance(value, float)}
    for name, label in BITS.items():
        if name in figures:
            return {label: f"{figures[name]:.4f}"}
    if "test_accuracy" in figures:
        return {"test acc": percent_text(figures["test_accuracy"])}
    return {name.replace("_", " "): loss_text(figures[name]) for name in [*figures][:2]}


def evaluated_labels(parts: Mapping[str, str]) -> list[str]:
    """The labels of those parts that were measured on the test set."""
    return [label for label in parts if label.startswith("test ")]


def labelled(label: str, value: str) -> str:
    """One part as it is read: `lr 0.1`, and `0:41 left`."""
    return value if label in _WITHOUT_LABEL else f"{label} {value}"


def aligned_line(parts: Mapping[str, str], without: Collection[str] = ()) -> str:
    """The parts in one line, with room for those that aren't known yet, so that lines align."""
    last = evaluated_labels(parts)
    known = [label for label in parts if label not in (*_WIDTHS, *last)]
    cells = []
    for label in (*known, *_WIDTHS, *last):
        if label in without:
            continue
        width, value = _WIDTHS.get(label, 0), parts.get(label, "")
        value = value.rjust(width) if label in _WITHOUT_LABEL else value.ljust(width)
        cell = labelled(label, value)
        cells.append(cell if label in parts else " " * len(cell))
    return "  ".join(cells).rstrip()


def _position(plan: "BatchPlan", step: int) -> dict[str, str]:
    samples = plan.samples_at(step)
    if plan.num_examples is None:  # an endless stream has no epochs
        total = count_text(plan.num_samples)
        return {"samples": f"{count_text(samples).rjust(len(total))}/{total}"}
    total = plan.num_samples / plan.num_examples
    return {"epoch": f"{samples / plan.num_examples:{len(f'{total:.1f}')}.1f}/{round(total, 2):g}"}


def _right(value: int, greatest: int) -> str:
    return str(value).rjust(len(str(greatest)))


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a row has figures of the test set."""
    return any(map(is_of_test_set, row))


def is_of_test_set(figure: str) -> bool:
    """Whether a figure of that name was measured on the test set."""
    return figure.startswith("test_")
