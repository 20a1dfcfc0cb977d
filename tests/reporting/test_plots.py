import math
import time
import xml.etree.ElementTree

import numpy as np
import pytest

from adabatch_jax.reporting.planned_values import known_rates
from adabatch_jax.reporting.plot_elements import inline_svg, png
from adabatch_jax.reporting.plots import AXES, curves
from adabatch_jax.reporting.saved_run import load_run

EPOCHS, UPDATES, SECONDS = AXES


TITLES = {
    "train_loss": "Training loss",
    "test_accuracy": "Test error (%)",
    "batch_size": "Batch size (examples)",
    "learning_rate": "Learning rate",
}


def panel(figure, key):
    return next(a for a in figure.axes if a.get_title(loc="left") == TITLES.get(key, key))


def points(figure, key, line=0):
    return panel(figure, key).get_lines()[line].get_data()


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_curves_show_what_was_measured(make_run, axis):
    run = load_run(make_run())
    figure = curves([run], axis)
    x, y = points(figure, "train_loss")
    assert list(x) == run.series(axis.key)
    assert list(y) == run.series("train_loss")
    _, error = points(figure, "test_accuracy")
    np.testing.assert_allclose(error, 100 - 100 * np.array(run.series("test_accuracy")))
    assert panel(figure, "batch_size").get_yscale() == "log"
    assert figure.axes[-1].get_xlabel() == axis.label


def test_batch_size_is_a_staircase_from_the_start(make_run):
    run = load_run(make_run(batch_sizes=(128, 256)))
    x, y = points(curves([run], UPDATES), "batch_size")
    change, end = (phase["stop_step"] for phase in run.plan["phases"])
    assert list(zip(x, y)) == [(0, 128), (change, 128), (change, 256), (end, 256)]


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_phases_are_bands_at_the_right_place(make_run, axis):
    run = load_run(make_run())
    bands = panel(curves([run], axis), "train_loss").patches
    rows = {row["step"]: row[axis.key] for row in run.rows}
    phases = [phase for phase in run.plan["phases"] if phase["index"] % 2]
    assert len(bands) == len(phases) == 2
    for band, phase in zip(bands, phases, strict=True):
        edges = band.get_x(), band.get_x() + band.get_width()
        assert edges == pytest.approx((rows[phase["start_step"]], rows[phase["stop_step"]]))


def test_very_many_phases_take_no_longer_than_their_rows(make_run):
    sizes = [100 + index % 2 for index in range(4_000)]
    rows = [
        {"step": 10**4 * k, "samples": k, "epoch": 20.0 * k, "learning_rate": 1 / k}
        for k in range(1, len(sizes) + 1)
    ]
    run = load_run(make_run(batch_sizes=sizes, rows=rows, finished=False))
    begin = time.thread_time()
    figure, rates = curves([run], EPOCHS), known_rates(run).of_phases(run.plan["phases"])
    assert time.thread_time() - begin < 4  # some 0.3 s; phase by phase through the rows: 15 s
    assert len(rates) == len(sizes) and rates[:3] == [1, None, 1 / 2]
    # A band that is narrower than a dot would only tint the panel.
    assert not panel(figure, "learning_rate").patches


def test_runs_are_overlaid_with_a_legend(make_run):
    growing, fixed = make_run("a", name="_growing"), make_run("b", batch_sizes=(128,))
    runs = [load_run(growing), load_run(fixed)]
    figure = curves(runs, EPOCHS)
    colours = [line.get_color() for line in panel(figure, "train_loss").get_lines()]
    assert len(set(colours)) == 2
    legend = [text.get_text().strip("\u200b") for text in figure.legends[0].get_texts()]
    assert legend[0] == "_growing" and len(legend) == 2
    assert not panel(figure, "train_loss").patches  # their phases differ


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "samples": 128, "epoch": 0.1, "batch_size": 128, "train_loss": 2.3}],
        [{"step": 1, "epoch": 0.1, "train_loss": None, "test_accuracy": None}],
        [{"step": s, "epoch": s / 9, "train_loss": 2.0 / s} for s in range(1, 9)],
        [{"step": s, "epoch": s / 9, "train_loss": [1.0, None][s % 2]} for s in range(1, 9)],
        [{"step": s, "epoch": s / 9, "train_loss": 0.0, "test_accuracy": 1} for s in (1, 2)],
    ],
    ids=["empty", "one row", "nan only", "no evaluation", "nan between", "perfect"],
)
@pytest.mark.filterwarnings("error")
def test_unusual_runs_can_be_drawn(make_run, rows):
    run = load_run(make_run(rows=rows, finished=False))
    for axis in AXES:
        figure = curves([run, run], axis)
        assert png(figure).startswith(b"\x89PNG")
    xml.etree.ElementTree.fromstring(inline_svg(curves([run], EPOCHS), "epochs"))
    # The plan says how the batch and the rate went as far as the run came, or was to come.
    for key in ("batch_size", "learning_rate"):
        drawn = [line.get_xdata() for line in panel(figure, key).get_lines()]
        assert max(len(x) for x in drawn) >= 2


def test_nan_leaves_a_gap(make_run):
    rows = [{"step": s, "epoch": s, "train_loss": None if s == 2 else 1.0} for s in (1, 2, 3)]
    run = load_run(make_run(rows=rows, finished=False))
    _, y = points(curves([run], EPOCHS), "train_loss")
    assert [math.isnan(value) for value in y] == [False, True, False]


def test_endless_stream_is_drawn_against_examples(make_run):
    run = load_run(make_run())
    run.plan["num_examples"] = None
    figure = curves([run], EPOCHS)
    assert figure.axes[-1].get_xlabel() == "examples"
    assert list(points(figure, "train_loss")[0]) == run.series("samples")


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a $\\frac$ b", "\"&'", "_x"])
def test_svg_shows_hostile_names_as_text(make_run, name):
    runs = [load_run(make_run("a", name=name)), load_run(make_run("b"))]
    svg = inline_svg(curves(runs, EPOCHS), "epochs")
    assert "<script" not in svg
    texts = [node.text for node in xml.etree.ElementTree.fromstring(svg).iter() if node.text]
    assert name in [text.strip("\u200b\n") for text in texts]


def test_svgs_on_one_page_have_different_identifiers_and_themed_colours(make_run):
    run = load_run(make_run())
    first, second = (inline_svg(curves([run], axis), axis.name) for axis in AXES[:2])
    identifiers = [
        {node.get("id") for node in xml.etree.ElementTree.fromstring(svg).iter("clipPath")}
        for svg in (first, second)
    ]
    assert identifiers[0] and not identifiers[0] & identifiers[1]
    assert "var(--ink)" in first and "var(--line-0)" in first
    assert first == inline_svg(curves([run], EPOCHS), "epochs")


def test_drawing_leaves_matplotlibs_settings_alone(make_run):
    import matplotlib

    before = dict(matplotlib.rcParams)
    inline_svg(curves([load_run(make_run())], EPOCHS), "epochs")
    assert dict(matplotlib.rcParams) == before
