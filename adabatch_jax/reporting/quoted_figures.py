"""The figures of runs that reports and comparisons quote, each computed in one place."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from adabatch_jax.config.declarations import flattened
from adabatch_jax.reporting.measured_metrics import (
    best_value,
    headline,
    is_of_training,
    metric_keys,
    score_of,
    title_of,
    value_text,
)
from adabatch_jax.reporting.saved_run import Run, run_labels
from adabatch_jax.schedules.plan import BatchPlan, fixed_batch_plan
from adabatch_jax.system.number_texts import count_text, seconds_text
from adabatch_jax.training.time_prediction import Prediction

TIMED = ("step", "compile", "input", "evaluation", "checkpoint")
UNKNOWN = "-"


def batch_sizes_text(run: Run) -> str:
    """The sizes from first to last: `128`, `128 to 1,024`."""
    sizes = list(dict.fromkeys(phase["batch_size"] for phase in run.plan["phases"]))
    if len(sizes) == 1:
        return count_text(sizes[0])
    return f"{count_text(sizes[0])} to {count_text(sizes[-1])}"


def total_seconds(run: Run) -> float | None:
    """The seconds of the whole run, or of the training so far while it is unfinished."""
    total = run.final("total_seconds")
    return run.final("elapsed_seconds") if total is None else total


def token_figures(run: Run) -> dict[str, str]:
    """How many tokens were trained on and how fast, evaluation left out; nothing where none are."""
    tokens, seconds = run.final("tokens"), run.final("training_seconds")
    if tokens is None:
        return {}
    speed = {"tokens per second": f"{tokens / seconds:,.0f}"} if seconds else {}
    return {"tokens": count_text(tokens), **speed}


def time_split(run: Run) -> dict[str, float]:
    """Seconds by what they went to, the rest as "other"; empty while unfinished."""
    if run.summary is None:
        return {}
    timed = {name: run.summary.get(f"{name}_seconds") for name in (*TIMED, "total")}
    split = {name: seconds for name, seconds in timed.items() if seconds is not None}
    total = split.pop("total", None)
    if total is not None:
        split["other"] = max(total - sum(split.values()), 0.0)
    return split


def prediction(run: Run) -> Prediction | None:
    """What the run was predicted to take; None where it wasn't, or for another plan.

    A run that was prolonged or got another future keeps the prediction that it began with.
    """
    content = run.plan.get("prediction")
    if content is None:
        return None
    predicted = Prediction.from_dict(content)
    expected = [(phase.batch_size, phase.num_updates) for phase in predicted.phases]
    planned = [(p["batch_size"], p["stop_step"] - p["start_step"]) for p in run.plan["phases"]]
    return predicted if expected == planned else None


def predicted_over_measured(run: Run) -> float | None:
    """The time of all updates as it was predicted over what it was, where both are known."""
    predicted, measured = prediction(run), run.final("phase_training_seconds")
    if predicted is None or not measured or not sum(measured):
        return None
    return predicted.total_seconds / sum(measured)


def outcome(run: Run) -> str:
    """One sentence or two on what happened."""
    step, num_steps = run.final("step") or 0, run.plan["num_steps"]
    seconds = total_seconds(run)
    epoch = run.final("epoch")
    length = f"{epoch:.4g} epochs" if epoch is not None else count_text(step) + " updates"
    time = f" in {seconds_text(seconds)}" if seconds is not None else ""
    figures = [f"{title_of(key)} {value_text(key, run.final(key))}" for key in headline(run)]
    result = f": {', '.join(figures)}" if figures else ""
    if run.summary is None:
        return (
            f"Unfinished: {length}{time} so far{result}, {count_text(step)} of "
            f"{count_text(num_steps)} updates.{_divergence(run)}"
        )
    constant, comparison = fixed_batch_plan(BatchPlan.from_dict(run.plan)).num_steps, ""
    if constant != num_steps and step == num_steps:
        first = count_text(run.plan["phases"][0]["batch_size"])
        comparison = (
            f" A constant batch of {first} would have needed {count_text(constant)} updates, "
            f"{constant / num_steps:.3g} times as many."
        )
    updates = count_text(step)
    rule = (run.summary.get("stopped_by") or {}).get("rule")
    ended = f", where {rule} ended the run early" if isinstance(rule, str) else ""
    return (
        f"Trained {length}{time}{result} after {updates} updates{ended}.{comparison}"
        f"{_divergence(run)}"
    )


def comparison_table(runs: Sequence[Run]) -> list[list[str]]:
    """A header, and a row of texts for each run."""
    keys = metric_keys(runs)
    keys = [key for key in keys if not is_of_training(key)] or keys[:1]
    ranked = [key for key in keys if any(score_of(key, run.config) for run in runs)]
    names = dict.fromkeys(name for run in runs for name in token_figures(run))
    rows = [
        {
            "run": label if run.summary else f"{label} (unfinished)",
            **_compared(run, keys, ranked),
            **{name: token_figures(run).get(name, UNKNOWN) for name in names},
        }
        for label, run in zip(run_labels(runs), runs, strict=True)
    ]
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def digests_sentence(runs: Sequence[Run]) -> str:
    """Whether the runs trained on the same examples in the same order, as far as can be told.

    The digest rolls over all examples so far, so the last position that all runs logged decides.
    """
    digests = [
        {row["samples"]: row["examples_digest"] for row in run.rows if "examples_digest" in row}
        for run in runs
    ]
    common = set.intersection(*map(set, digests))
    if not common:
        return "No position was logged by all runs, so their examples can't be compared."
    samples = max(common)
    if len({digest[samples] for digest in digests}) > 1:
        return "The runs didn't all see the same examples in the same order."
    return f"All runs saw the same {count_text(samples)} examples first, in the same order."


def differing_settings(runs: Sequence[Run]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Which settings differ between runs, and which don't, of config.json and of the plan.

    Returns:
      Those that differ, a value for each run, `UNKNOWN` where it has no such setting, and the
      common ones.
    """
    flat = [flattened(run.config) | _plan_settings(run) for run in runs]
    columns = {
        name: [c.get(name, UNKNOWN) for c in flat]
        for name in dict.fromkeys(n for c in flat for n in c)
    }
    differing = {
        name: values
        for name, values in columns.items()
        if any(value != values[0] for value in values)
    }
    common = {name: values[0] for name, values in columns.items() if name not in differing}
    return differing, common


def _plan_settings(run: Run) -> dict[str, Any]:
    """What the plan knows beside the settings, or where `fit` was given none."""
    names = ("num_examples", "duration", "remainder")
    sizes = {"plan.batch_sizes": batch_sizes_text(run)}
    return {f"plan.{name}": run.plan[name] for name in names} | sizes


def _compared(run: Run, keys: Sequence[str], ranked: Sequence[str]) -> dict[str, str]:
    digest = run.final("examples_digest")
    updates = count_text(run.final("step") or 0)
    if run.summary is None:
        updates += f" of {count_text(run.plan['num_steps'])}"
    metrics = {}
    for key in keys:
        text = functools.partial(value_text, key)
        metrics[title_of(key)] = _or_unknown(run.final(key), text)
        if key in ranked:
            metrics[f"best {title_of(key)}"] = _or_unknown(best_value(run, key), text)
    return {
        "batch size": batch_sizes_text(run),
        "epochs": _or_unknown(run.final("epoch"), lambda epoch: f"{epoch:.4g}"),
        "updates": updates,
        "examples": _or_unknown(run.final("samples"), count_text),
        **metrics,
        "time": _or_unknown(total_seconds(run), seconds_text),
        "in steps": _or_unknown(run.final("step_seconds"), seconds_text),
        "predicted / measured": _or_unknown(predicted_over_measured(run), "{:.2f}".format),
        "digest": _or_unknown(digest, lambda value: str(value)[:8]),
    }


def _divergence(run: Run) -> str:
    loss = run.final("train_loss")
    return "" if loss is None or math.isfinite(loss) else " The training loss is not finite."


def _or_unknown(value: Any, text: Callable[[Any], str]) -> str:
    return UNKNOWN if value is None else text(value)
