"""Metrics of any name: which there are, which way is better, what is drawn and told of them."""

import csv
import io
import math

import pytest

from adabatch_jax.reporting.measured_metrics import best_value, headline, metric_keys, score_of
from adabatch_jax.reporting.plots import AXES, curves, panel_csv, panels_of
from adabatch_jax.reporting.quoted_figures import comparison_table, outcome
from adabatch_jax.reporting.report_pages import comparison_page, run_page
from adabatch_jax.reporting.saved_run import load_run

ROWS = [
    {"step": s, "samples": 128 * s, "epoch": s / 9, "train_loss": 3 / s, "train_bits": 4 / s,
     "test_loss": 2 / s, "test_bits": abs(s - 6) + 0.5, "holdout_loss": 2.5 / s, "note": "text",
     "test_odd": s, "elapsed_seconds": s / 2, "extra_per_second": 3}
    for s in range(1, 10)
]  # fmt: skip


@pytest.fixture
def own(make_run):
    return load_run(make_run(name="own", rows=ROWS, finished=False))


def test_what_is_measured(own):
    assert metric_keys([own]) == [
        "train_loss", "train_bits", "test_loss", "test_bits", "holdout_loss", "test_odd",
    ]  # fmt: skip
    assert [panel.title for panel in panels_of([own])] == [
        "Training loss", "Training bits", "Loss", "Test bits", "Test odd",
        "Batch size (examples)", "Learning rate",
    ]  # fmt: skip
    loss = curves([own], AXES[0]).axes[2]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["test", "holdout"]
    assert [list(line.get_ydata()) for line in loss.get_lines()] == [
        [row[key] for row in ROWS] for key in ("test_loss", "holdout_loss")
    ]


@pytest.mark.parametrize(
    ("key", "is_less_better"),
    [("test_loss", True), ("test_bits", True), ("holdout_bits_per_byte", True), ("test_f1", False),
     ("val_top5", False), ("test_perplexity", True), ("my_set_word_error", True), ("test_odd", None),
     ("test_lossless", None), ("test_mean_iou", False)],
)  # fmt: skip
def test_which_way_is_better_is_told_by_the_name(key, is_less_better):
    score = score_of(key, {})
    assert (None if score is None else score.is_loss) == is_less_better


def test_what_the_run_keeps_its_best_by_goes_before_the_name(make_run):
    run = load_run(make_run(rows=ROWS, finished=False, keep_best="max test_odd"))
    assert best_value(run, "test_odd") == 9 and headline(run) == ["test_odd"]


def test_pages_tell_them(own):
    assert outcome(own).startswith("Unfinished: 1 epochs in 4.5 s so far: test loss 0.22222, test ")
    assert best_value(own, "test_bits") == 0.5 and best_value(own, "test_odd") is None
    header, row = comparison_table([own])
    cells = dict(zip(header, row, strict=True))
    assert cells["test bits"] == "3.5" and cells["best test bits"] == "0.5"
    assert cells["test odd"] == "9" and "best test odd" not in cells
    assert "test accuracy" not in cells and "Test error" not in run_page(own)
    assert "lowest of bits, loss" in run_page(own) and "lowest of bits, loss" in comparison_page(
        [own]
    )


def test_a_panel_carries_its_data(own):
    panel = next(panel for panel in panels_of([own]) if panel.title == "Loss")
    rows = list(csv.DictReader(io.StringIO(panel_csv([own], panel))))
    for key in ("step", "samples", "epoch", "elapsed_seconds", "test_loss", "holdout_loss"):
        assert [float(row[key]) for row in rows] == [row[key] for row in ROWS]
    assert {row["run"] for row in rows} == {"own"}


def test_text_and_nothing_are_no_metrics(make_run):
    rows = [{"step": 1, "test_a": "high", "test_b": None, "test_c": [1], "test_d": True}]
    run = load_run(make_run(rows=rows, finished=False))
    assert metric_keys([run]) == ["test_b"] and math.isnan(run.final("test_b"))
    assert best_value(run, "test_b") is None


@pytest.mark.parametrize(
    ("figures", "told"),
    [("bits_per_byte bits_per_token accuracy", "bits_per_byte"), ("accuracy loss", "accuracy"),
     ("bits_per_token accuracy", "bits_per_token")],
)  # fmt: skip
def test_what_says_most(make_run, figures, told):
    row = {f"test_{name}": 0.5 for name in figures.split()}
    run = load_run(make_run(rows=[{**ROWS[-1], **row}], finished=False, keep_best="auto"))
    assert headline(run) == [f"test_{told}"]
