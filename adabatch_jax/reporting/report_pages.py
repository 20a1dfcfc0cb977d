"""Report pages: one run, or several compared."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adabatch_jax.config.declarations import flattened
from adabatch_jax.reporting import html_elements, quoted_figures
from adabatch_jax.reporting.measured_metrics import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    best_value,
    by_quantity,
    is_of_training,
    metric_keys,
    score_of,
    title_of,
    value_text,
    words_of,
)
from adabatch_jax.reporting.planned_values import known_rates
from adabatch_jax.reporting.planning.cost_notes import gain_text
from adabatch_jax.reporting.planning.devices_table import network_text
from adabatch_jax.reporting.planning.scaling_efficiency import Network
from adabatch_jax.reporting.plot_elements import COLOURS, inline_svg, line_look
from adabatch_jax.reporting.plots import (
    BATCH_SIZE,
    MOST_QUANTITIES,
    Panel,
    axes_of,
    panel_csv,
    panel_figure,
    panels_of,
)
from adabatch_jax.reporting.predicted_scaling import (
    predicted_phases,
    scaling_csv,
    scaling_figure,
)
from adabatch_jax.reporting.saved_run import Run, run_labels
from adabatch_jax.system.number_texts import count_text, percent_text, seconds_text

_OTHER_RESULTS = {
    "num_parameters": "parameters",
    "examples_digest": "digest of the examples",
    "weights_digest": "digest of the weights",
}
# CSS's names of the styles of lines.
_BORDERS = {"solid": "solid", "dashed": "dashed", "dotted": "dotted", "dashdot": "double"}


def run_page(run: Run) -> str:
    """The report of one run as HTML."""
    return html_elements.page(
        run.name,
        [
            html_elements.paragraph(quoted_figures.outcome(run), "lead"),
            html_elements.section("Phases", _phase_table(run)),
            _curves([run], "Bands are the phases, their batch sizes above."),
            html_elements.section("Result", _result_table(run)),
            _time_section(run),
            *_prediction_section(run),
            *_scaling_section(run),
            html_elements.section("Settings", _one_column(flattened(run.config))),
            html_elements.section("Environment", _one_column(flattened(run.environment))),
        ],
    )


def comparison_page(runs: Sequence[Run]) -> str:
    """The comparison of several runs as HTML."""
    labels = run_labels(runs)
    header, *columns = zip(*quoted_figures.comparison_table(runs), strict=True)
    table = html_elements.table(header, columns, text_columns=(0,))
    return html_elements.page(
        f"{len(runs)} runs compared",
        [
            html_elements.section(
                "Results",
                table,
                html_elements.paragraph(quoted_figures.digests_sentence(runs), "note"),
                html_elements.paragraph(_direction_note(metric_keys(runs)), "note"),
            ),
            _settings_section(runs),
            _curves(runs, "One colour for each run."),
            *(
                html_elements.section(f"Phases of {label}", _phase_table(run))
                for label, run in zip(labels, runs, strict=True)
            ),
        ],
    )


def _curves(runs: Sequence[Run], caption: str) -> str:
    key = ""
    if len(runs) > 1:
        colours, styles = zip(*map(line_look, range(len(runs))))
        themed = [f"var(--line-{COLOURS.index(colour)})" for colour in colours]
        key = html_elements.key(run_labels(runs), themed, [_BORDERS[style] for style in styles])
    panels, axes, elements = panels_of(runs), axes_of(runs), []
    for number, panel in enumerate(panels):
        drawings = "".join(
            html_elements.option_part(
                place, inline_svg(panel_figure(runs, panel, axis), f"{number}-{axis.name}")
            )
            for place, axis in enumerate(axes)
        )
        note = _origin(runs, panel) if panel.is_planned else ""
        csv = panel_csv(runs, panel)
        elements.append(html_elements.figure(f"figure_{number}", drawings, note, csv, key))
    notes = [caption, "What lies between two rows is a line; seconds between them are estimated."]
    if len(by_quantity(metric_keys(runs))) > MOST_QUANTITIES:
        notes.append(f"Of the metrics {MOST_QUANTITIES} are drawn; metrics.csv has all.")
    return html_elements.section(
        "Curves",
        html_elements.paragraph(" ".join(notes), "note"),
        key,
        html_elements.choice("axis", [axis.label for axis in axes], "Against", *elements),
    )


def _origin(runs: Sequence[Run], panel: Panel) -> str:
    """What a panel that isn't made of rows is made of."""
    if panel == BATCH_SIZE:
        return "As planned."
    known = [known_rates(run) for run in runs]
    if all(rates.resolved is not None and not rates.since for rates in known):
        return "The settings' rate on the plan."
    if all(rates.resolved is None for rates in known):
        return "Points are what was logged: between them the rate isn't known."
    return "Lines are the settings' rate on the plan, points what was logged where it was another."


def _direction_note(keys: Sequence[str]) -> str:
    """By which rule a best value is chosen, as far as these metrics need it."""
    words = set().union(*map(words_of, keys))
    rules = [
        f"{which} of {', '.join(sorted(words & known))}"
        for which, known in (("the highest", HIGHER_IS_BETTER), ("the lowest", LOWER_IS_BETTER))
        if words & known
    ]
    if not rules:
        return "Which way these metrics are better isn't known by their names."
    return f"The best is {' and '.join(rules)}, or what --keep-best says."


def _phase_table(run: Run) -> str:
    num_examples = run.plan["num_examples"]
    tokens = run.plan.get("tokens_per_example")
    rows, rates = [], known_rates(run)
    for phase, rate in zip(run.plan["phases"], rates.of_phases(run.plan["phases"]), strict=True):
        start, stop = phase["start_sample"], phase["stop_sample"]
        epochs = f"{start / num_examples:.2f} to {stop / num_examples:.2f}" if num_examples else ""
        rows.append(
            [
                phase["index"] + 1,
                f"{count_text(phase['start_step'])} to {count_text(phase['stop_step'])}",
                f"{count_text(start)} to {count_text(stop)}",
                *(
                    [f"{count_text(start * tokens)} to {count_text(stop * tokens)}"]
                    if tokens
                    else []
                ),
                epochs or quoted_figures.UNKNOWN,
                count_text(phase["batch_size"]),
                quoted_figures.UNKNOWN if rate is None else f"{rate:.6g}",
                quoted_figures.UNKNOWN if rate is None else f"{rate / phase['batch_size']:.4g}",
            ]
        )
    header = ["phase", "steps", "samples", *(["tokens"] if tokens else []), "epochs"]
    header += ["batch size", "lr at start", "lr / batch size"]
    kind = "logged update" if rates.resolved is None or rates.since else "update"
    note = f"The learning rate is that of the phase's first {kind}."
    return html_elements.table(header, rows) + html_elements.paragraph(note, "note")


def _result_table(run: Run) -> str:
    shown, keys = {}, metric_keys([run])
    for key in keys:
        shown[title_of(key)] = value_text(key, run.final(key))
        if score_of(key, run.config) is not None and not is_of_training(key):
            best = best_value(run, key)
            if best is not None:
                shown[f"best {title_of(key)}"] = value_text(key, best)
    shown |= quoted_figures.token_figures(run)
    for key, name in _OTHER_RESULTS.items():
        value = run.final(key)
        if value is not None:
            shown[name] = count_text(value) if key == "num_parameters" else value
    note = html_elements.paragraph(_direction_note(keys), "note") if keys else ""
    return _one_column(shown) + note


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


def _scaling_section(run: Run) -> list[str]:
    """How far the run would scale, where its own times tell anything about more devices."""
    phases = predicted_phases(run)
    if not phases:
        return []
    drawing = inline_svg(scaling_figure(phases), "scaling")
    caption = (
        "Predicted, not measured: how much of so many devices each phase's batch would use, a line "
        "for each batch size, if all of the all-reduce were hidden behind the computation (solid) or "
        "nothing of it (dashed)."
    )
    note = (
        "Made of the run's own seconds per update, of at least as few rows on a device, and of an "
        f"assumed network: {network_text(Network())}. plan --measure --devices 8,64,512 predicts "
        "with yours."
    )
    return [
        html_elements.section(
            "Predicted scaling",
            html_elements.figure("figure_scaling", drawing, caption, scaling_csv(phases)),
            html_elements.paragraph(note, "note"),
        )
    ]


def _predicted_and_measured(predicted: float, measured: float | None) -> list[str]:
    if not measured:
        return [seconds_text(predicted), quoted_figures.UNKNOWN, quoted_figures.UNKNOWN]
    return [seconds_text(predicted), seconds_text(measured), f"{predicted / measured:.2f}"]


def _settings_section(runs: Sequence[Run]) -> str:
    differing, common = quoted_figures.differing_settings(runs)
    elements = []
    if differing:
        texts = {
            name: [_value_text(value) for value in values] for name, values in differing.items()
        }
        elements.append(html_elements.settings_table(run_labels(runs), texts, mark=True))
    shared = _one_column(common)
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
