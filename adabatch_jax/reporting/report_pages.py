"""Report pages: one run, or several compared."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adabatch_jax.config.declarations import flattened
from adabatch_jax.reporting import html_elements, quoted_figures
from adabatch_jax.reporting.planning.cost_notes import gain_text
from adabatch_jax.reporting.plots import AXES, curves, inline_svg
from adabatch_jax.reporting.saved_run import Run, run_labels
from adabatch_jax.system.number_texts import count_text, percent_text, seconds_text

_RESULTS = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "num_parameters": "parameters",
    "examples_digest": "digest of the examples",
    "weights_digest": "digest of the weights",
}
_RESULT_TEXTS = {
    "test_accuracy": lambda value: percent_text(value, 2),
    "num_parameters": count_text,
}


def run_page(run: Run) -> str:
    """The report of one run as HTML."""
    return html_elements.page(
        run.name,
        [
            html_elements.paragraph(quoted_figures.outcome(run), "lead"),
            html_elements.section("Phases", _phase_table(run)),
            _curves([run], "Bands are the phases, with their batch sizes above."),
            html_elements.section("Result", _result_table(run)),
            _time_section(run),
            *_prediction_section(run),
            html_elements.section("Settings", _one_column(flattened(run.config))),
            html_elements.section("Environment", _one_column(flattened(run.environment))),
        ],
    )


def comparison_page(runs: Sequence[Run]) -> str:
    """The comparison of several runs as HTML."""
    labels = run_labels(runs)
    header, *rows = quoted_figures.comparison_table(runs)
    table = html_elements.table(header, rows, text_columns=(0, 1))
    return html_elements.page(
        f"{len(runs)} runs compared",
        [
            html_elements.section(
                "Results",
                table,
                html_elements.paragraph(quoted_figures.digests_sentence(runs), "note"),
            ),
            _settings_section(labels, [flattened(run.config) for run in runs]),
            _curves(runs, "One colour for each run."),
            *(
                html_elements.section(f"Phases of {label}", _phase_table(run))
                for label, run in zip(labels, runs, strict=True)
            ),
        ],
    )


def _curves(runs: Sequence[Run], caption: str) -> str:
    drawings = (
        html_elements.figure(
            inline_svg(curves(runs, axis), axis.name), f"Against {axis.label}. {caption}"
        )
        for axis in AXES
    )
    return html_elements.section("Curves", *drawings)


def _phase_table(run: Run) -> str:
    num_examples = run.plan["num_examples"]
    rows = []
    for phase, rate in zip(
        run.plan["phases"], quoted_figures.first_learning_rates(run), strict=True
    ):
        start, stop = phase["start_sample"], phase["stop_sample"]
        epochs = f"{start / num_examples:.2f} to {stop / num_examples:.2f}" if num_examples else ""
        rows.append(
            [
                phase["index"] + 1,
                f"{count_text(phase['start_step'])} to {count_text(phase['stop_step'])}",
                f"{count_text(start)} to {count_text(stop)}",
                epochs or quoted_figures.UNKNOWN,
                count_text(phase["batch_size"]),
                quoted_figures.UNKNOWN if rate is None else f"{rate:.6g}",
                quoted_figures.UNKNOWN if rate is None else f"{rate / phase['batch_size']:.4g}",
            ]
        )
    header = ["phase", "steps", "samples", "epochs", "batch size", "lr at start", "lr / batch size"]
    note = "The learning rate is that of the phase's first logged update."
    return html_elements.table(header, rows) + html_elements.paragraph(note, "note")


def _result_table(run: Run) -> str:
    shown = {}
    for key, name in _RESULTS.items():
        value = run.final(key)
        if value is not None:
            shown[name] = _RESULT_TEXTS.get(key, _value_text)(value)
    best = quoted_figures.best_accuracy(run)
    if best is not None:
        shown["best test accuracy"] = percent_text(best, 2)
    return _one_column(shown)


def _time_section(run: Run) -> str:
    split = quoted_figures.time_split(run)
    total = sum(split.values())
    if not total:
        return html_elements.section(
            "Time", html_elements.paragraph("Known when the run is finished.", "note")
        )
    bar = html_elements.share_bar(
        [
            (name, f"var(--line-{number})" if name != "other" else "var(--soft)", seconds / total)
            for number, (name, seconds) in enumerate(split.items())
        ]
    )
    rows = [[n, seconds_text(s), percent_text(s / total)] for n, s in split.items()]
    rows.append(["total", seconds_text(total), ""])
    elements = [bar, html_elements.table(["spent on", "time", "share"], rows)]
    meanwhile = run.summary.get("background_compile_seconds")
    if meanwhile:
        text = f"{seconds_text(meanwhile)} more of compilation went on while the run trained."
        elements.append(html_elements.paragraph(text, "note"))
    return html_elements.section("Time", *elements)


def _prediction_section(run: Run) -> list[str]:
    """Predicted and measured seconds; nothing where nothing was predicted."""
    prediction = quoted_figures.prediction(run)
    if prediction is None:
        return []
    measured = run.final("phase_training_seconds") or [None] * len(prediction.phases)
    rows = [
        [
            phase.phase + 1,
            count_text(phase.batch_size),
            count_text(phase.num_updates),
            f"{'' if phase.is_measured else '~'}{seconds_text(phase.update_seconds)}",
            *_predicted_and_measured(phase.phase_seconds, seconds),
        ]
        for phase, seconds in zip(prediction.phases, measured, strict=True)
    ]
    total = None if None in measured else sum(measured)
    updates = count_text(sum(phase.num_updates for phase in prediction.phases))
    totals = _predicted_and_measured(prediction.total_seconds, total)
    rows.append(["total", "", updates, "", *totals])
    header = ["phase", "batch size", "updates", "an update", "predicted", "measured", "ratio"]
    note = (
        "Predicted before the run from the time of a few updates (~: from the fit to the others); "
        "measured are updates and waiting for input."
    )
    gain = gain_text(prediction)
    if len(prediction.phases) > 1:
        speedup = f"Predicted speed-up over the first batch throughout: {prediction.speedup:.2f}."
        gain = f"{speedup} {gain}"
    notes = [html_elements.paragraph(text, "note") for text in (gain, note)]
    return [
        html_elements.section(
            "Predicted and measured time", html_elements.table(header, rows), *notes
        )
    ]


def _predicted_and_measured(predicted: float, measured: float | None) -> list[str]:
    if not measured:
        return [seconds_text(predicted), quoted_figures.UNKNOWN, quoted_figures.UNKNOWN]
    return [seconds_text(predicted), seconds_text(measured), f"{predicted / measured:.2f}"]


def _settings_section(labels: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for config in configs for name in config)
    columns = {
        name: [_value_text(config[name]) if name in config else "" for config in configs]
        for name in names
    }
    differing = {name: values for name, values in columns.items() if len(set(values)) > 1}
    common = {name: values[:1] for name, values in columns.items() if name not in differing}
    elements = [html_elements.settings_table(labels, differing, mark=True)] if differing else []
    shared = html_elements.settings_table([""], common)
    elements.append(html_elements.details(f"{len(common)} settings in common", shared))
    return html_elements.section("Settings that differ" if differing else "Settings", *elements)


def _one_column(values: Mapping[str, Any]) -> str:
    return html_elements.settings_table(
        [""], {name: [_value_text(v)] for name, v in values.items()}
    )


def _value_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
