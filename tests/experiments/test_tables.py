"""Every printed number against what numpy and scipy make of the run folders."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments.reproduction import tables
from experiments.reproduction.results import load_study
from tests.experiments.conftest import study_arms

NAMES = ("fixed_small", "adaptive", "goyal", "smith")
SEEDS = (0, 1, 2, 3)
ERRORS = {"fixed_small": 8.0, "adaptive": 8.1, "goyal": 11.0, "smith": 8.4}
PACES = {"fixed_small": 12.0, "adaptive": 7.0, "goyal": 500.0, "smith": 9.0}
PASSES = {
    "fixed_small": [
        {"batch_size": 20, "updates": 200, "forward_seconds": 0.5, "backward_seconds": 1.0}
    ],
    "adaptive": [
        {"batch_size": 20, "updates": 50, "forward_seconds": 0.5, "backward_seconds": 1.0},
        {"batch_size": 160, "updates": 20, "forward_seconds": 1.5, "backward_seconds": 2.0},
    ],
}
TUNING = {
    "adaptive": {"lr_scale": 0.5, "candidates": {"1": 9.0, "0.5": 8.25, "4": None}},
    "goyal": {"lr_scale": 1.0, "candidates": {"1": 9.0, "0.5": 9.25, "4": 10}},
}


@pytest.fixture
def folder(write_run, write_study):
    arms = {name: study_arms()[name] for name in NAMES}
    rng = np.random.default_rng(1)
    for name, config in arms.items():
        for seed in SEEDS:
            state = "diverged" if (name, seed) == ("goyal", 2) else "finished"
            error = ERRORS[name] + 0.2 * rng.normal()
            write_run("digits_cnn", name, config, seed, error, PACES[name], state)
    return write_study(
        {"digits_cnn": arms},
        seeds=SEEDS,
        passes={"digits_cnn": PASSES},
        tuning={"digits_cnn": TUNING},
    )


@pytest.fixture
def experiment(folder):
    return load_study(folder).experiments[0]


def cells(table):
    """By arm and column, the texts."""
    assert all(len(row) == len(table.header) for row in table.rows)
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def summaries(folder, arm):
    paths = sorted(folder.glob(f"runs/digits_cnn/{arm}/seed*/summary.json"))
    return [json.loads(path.read_text()) for path in paths]


def rows(folder, arm):
    for path in sorted(folder.glob(f"runs/digits_cnn/{arm}/seed*/summary.json")):
        lines = path.with_name("metrics.jsonl").read_text().splitlines()
        yield [json.loads(line) for line in lines]


def errors(folder, arm):
    return np.array([100 - 100 * s["test_accuracy"] for s in summaries(folder, arm)])


def seconds(folder, arm, *kinds):
    return np.array([sum(s[f"{k}_seconds"] for k in kinds) for s in summaries(folder, arm)])


def mean_sd(values, digits=2):
    return f"{np.mean(values):,.{digits}f} ± {np.std(values, ddof=1):,.{digits}f}"


def t_interval(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return f"{low:.2f} to {high:.2f}"


def test_main_table(experiment, folder):
    table = cells(tables.main_table(experiment))
    assert list(table) == list(NAMES)
    for arm, row in table.items():
        assert row["test error (%)"] == mean_sd(errors(folder, arm))
        assert row["95 % interval"] == t_interval(errors(folder, arm))
        assert row["updates"] == f"{summaries(folder, arm)[0]['step']:,}"
        spent = seconds(folder, arm, "step", "input")
        assert row["training (s)"] == mean_sd(spent, 0 if arm == "goyal" else 1)
    assert [row["n"] for row in table.values()] == ["4", "4", "3 of 4 (1 diverged)", "4"]
    assert [row["batch"] for row in table.values()] == ["20", "20 to 160", "160", "20 to 100"]
    fixed = seconds(folder, "fixed_small", "step", "input")
    assert table["fixed_small"]["speed-up"] == "1.00"
    adaptive = seconds(folder, "adaptive", "step", "input")
    assert table["adaptive"]["speed-up"] == mean_sd(fixed / adaptive)
    goyal = seconds(folder, "goyal", "step", "input")
    assert table["goyal"]["speed-up"] == mean_sd(fixed[[0, 1, 3]] / goyal)


def test_difference_table(experiment, folder):
    table = cells(tables.difference_table(experiment, 0.5))
    assert list(table) == list(NAMES[1:])
    fixed = errors(folder, "fixed_small")
    for arm, row in table.items():
        values = errors(folder, arm)
        welch = stats.ttest_ind(values, fixed, equal_var=False)
        sides = [
            stats.ttest_ind(values, fixed + shift, equal_var=False, alternative=side).pvalue
            for shift, side in ((-0.5, "greater"), (0.5, "less"))
        ]
        assert float(row["difference (points)"]) == round(values.mean() - fixed.mean(), 2)
        for confidence in (90, 95):
            low, high = welch.confidence_interval(confidence / 100)
            assert row[f"{confidence} % interval"] == f"{low:+.2f} to {high:+.2f}"
        for column, p in {"Welch p": welch.pvalue, "TOST p": max(sides)}.items():
            printed = row[column]
            assert (p < 0.001) == (printed == "< 0.001")
            assert p < 0.001 or float(printed) == pytest.approx(p, abs=0.005)
        if arm != "goyal":
            assert ("equivalent" in row["verdict"]) == (max(sides) < 0.05)
            assert ("different" in row["verdict"]) == (welch.pvalue < 0.05 <= max(sides))
    verdicts = ["equivalent within 0.5 points", "1 of 4 diverged", "different: higher"]
    assert [row["verdict"] for row in table.values()] == verdicts


def test_best_epoch_table(experiment, folder):
    table = cells(tables.best_epoch_table(experiment))
    for arm, row in table.items():
        best = [max(r, key=lambda row: row["holdout_accuracy"]) for r in rows(folder, arm)]
        chosen = [100 - 100 * row["test_accuracy"] for row in best]
        assert row["test error (%)"] == mean_sd(chosen)
        assert row["95 % interval"] == t_interval(chosen)
        assert row["at the end"] == mean_sd(errors(folder, arm))
        assert row["n"] == str(len(chosen)) == ("3" if arm == "goyal" else "4")
        assert row["chosen epochs"] == f"{best[0]['epoch']:.3g}"
    assert list(table) == list(NAMES)


def test_passes_have_the_papers_layout(experiment):
    table = tables.passes_table(experiment)
    assert table.header[:4] == ("network", "batch", "forward (s)", "backward (s)")
    assert table.rows == (
        ("cnn_digits", "20", "100.00 (1.00x)", "200.00 (1.00x)", "fixed_small"),
        ("cnn_digits", "20 to 160", "55.00 (1.82x)", "90.00 (2.22x)", "adaptive"),
    )


def test_epoch_times(experiment, folder):
    printed = {(row[0], row[1]): row[2:] for row in tables.epoch_time_table(experiment).rows}
    runs = list(rows(folder, "adaptive"))
    first = [run[0]["training_seconds"] / run[0]["epoch"] for run in runs]
    fixed = [run[-1]["training_seconds"] / run[-1]["epoch"] for run in rows(folder, "fixed_small")]
    ratio = np.mean(fixed) / np.mean(first)
    assert printed["adaptive", "20"] == (mean_sd(first), f"{ratio:.2f}")
    assert printed["fixed_small", "20"] == (mean_sd(fixed, 1), "1.00")
    assert [size for arm, size in printed if arm == "adaptive"] == ["20", "40", "80", "160"]


def test_times_of_whole_runs(experiment, folder):
    table = cells(tables.time_table(experiment))
    row = table["adaptive"]
    assert row["examples"] == "4,000"
    assert row["training"] == mean_sd(seconds(folder, "adaptive", "step", "input"), 1)
    assert row["of it input"] == mean_sd(seconds(folder, "adaptive", "input"))
    assert row["in all"] == mean_sd(seconds(folder, "adaptive", "total"), 1)
    totals = [seconds(folder, arm, "total") for arm in ("fixed_small", "adaptive")]
    assert row["speed-up"] == mean_sd(totals[0] / totals[1])
    assert (row["compilation"], row["evaluation"]) == ("2.00 ± 0.00", "0.500 ± 0.000")


def test_tuning_table_shows_what_was_tried(experiment):
    table = tables.tuning_table(experiment)
    assert table.header == ("arm", "chosen", "x0.5", "x1", "x4")
    assert table.rows == (
        ("adaptive", "x0.5 (edge of the search)", "8.25", "9.00", "-"),
        ("goyal", "x1", "9.25", "9.00", "10.00"),
    )


def test_summary_has_the_adaptive_arms_of_all_experiments(write_run, write_study, folder):
    arms = study_arms()
    named = {"fixed_small": arms["fixed_small"], "adaptive_x2": arms["adaptive"]}
    for name, config in named.items():
        for seed in SEEDS:
            write_run("other", name, config, seed, error=8 + 0.1 * seed)
    first = {name: arms[name] for name in NAMES}
    out = write_study({"digits_cnn": first, "other": named}, seeds=SEEDS)
    table = tables.summary_table(load_study(out))
    assert [row[1] for row in table.rows] == ["adaptive", "adaptive_x2"]
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["fixed_small (%)"] == mean_sd(errors(folder, "fixed_small"))
    assert row["arm (%)"] == mean_sd(errors(folder, "adaptive"))
    steps = [summaries(folder, arm)[0]["step"] for arm in ("fixed_small", "adaptive")]
    assert row["fewer updates"] == f"{steps[0] / steps[1]:.2f}x"


@pytest.mark.parametrize("accuracies", [(), (8.0,), (8.0, 8.0)], ids=["none", "one", "equal"])
def test_no_interval_is_invented(write_run, write_study, accuracies):
    arms = {name: study_arms()[name] for name in ("fixed_small", "adaptive")}
    for name, config in arms.items():
        for seed, error in enumerate(accuracies):
            write_run("digits_cnn", name, config, seed, error)
    study = load_study(write_study({"digits_cnn": arms}, seeds=range(2)))
    row = tables.main_table(study.experiments[0]).rows[1]
    difference = tables.difference_table(study.experiments[0], 1.0).rows[0]
    assert (
        row[2:5]
        == {
            0: ("-", "-", "0 of 2"),
            1: ("8.00", "-", "1 of 2"),
            2: ("8.00 ± 0.00", "all equal", "2"),
        }[len(accuracies)]
    )
    shown = "+0.00" if accuracies else "-"
    assert difference == ("adaptive", shown, "-", "-", "-", "-", "not shown")


def test_nothing_measured_gives_no_tables(write_study):
    out = write_study({"digits_cnn": {"adaptive": study_arms()["adaptive"]}})
    experiment = load_study(out).experiments[0]
    assert tables.main_table(experiment).rows == (
        ("adaptive", "20 x2 every 1ep max 160", "-", "-", "0 of 3", "-", "-", "-"),
    )
    assert tables.difference_table(experiment, 1.0).rows == ()
    for table in ("best_epoch", "passes", "epoch_time", "time", "tuning"):
        assert getattr(tables, f"{table}_table")(experiment) is None
