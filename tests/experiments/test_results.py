import dataclasses
import json

import numpy as np
import pytest

from adabatch_jax.system.errors import StorageError, UsageError
from experiments.reproduction.measures import epoch_seconds, schedule_points, speedups
from experiments.reproduction.results import load_study
from tests.experiments.conftest import ENVIRONMENT, NUM_EXAMPLES, change_sealed, study_arms


@pytest.fixture
def load_arm(write_run, write_study):
    """Loads a study of one arm whose seeds are in the given states."""

    def load(states, config=None, **options):
        config = config or study_arms()["adaptive"]
        for seed, state in enumerate(states):
            if state is not None:
                write_run("digits_cnn", "adaptive", config, seed, state=state, **options)
        seeds = range(len(states))
        out = write_study({"digits_cnn": {"adaptive": config}}, seeds=seeds)
        return load_study(out).experiments[0].arms[0]

    return load


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_finished_run(load_arm, tmp_path):
    run = load_arm(["finished"]).seeds[0]
    folder = tmp_path / "runs/digits_cnn/adaptive/seed0"
    summary, rows = json.loads((folder / "summary.json").read_text()), rows_of(folder)
    assert (run.seed, run.state, run.message) == (0, "finished", None)
    assert run.test == pytest.approx(100 - 100 * summary["test_accuracy"])
    assert (run.updates, run.examples) == (summary["step"], 4 * NUM_EXAMPLES)
    assert run.training_seconds == summary["step_seconds"] + summary["input_seconds"]
    assert {f"{name}_seconds" for name in run.seconds} == {k for k in summary if "seconds" in k}
    assert [e.step for e in run.evaluations] == [row["step"] for row in rows]
    assert [e.training_seconds for e in run.evaluations] == [r["training_seconds"] for r in rows]


def test_best_epoch_is_chosen_without_the_test_set(load_arm, tmp_path):
    run = load_arm(["finished"]).seeds[0]
    rows = rows_of(tmp_path / "runs/digits_cnn/adaptive/seed0")
    chosen = max(rows, key=lambda row: row["holdout_accuracy"])
    best_on_test = max(rows, key=lambda row: row["test_accuracy"])
    assert chosen["step"] != best_on_test["step"]
    assert (run.best.step, run.best.epoch) == (chosen["step"], chosen["epoch"])
    assert run.best.test == pytest.approx(100 - 100 * chosen["test_accuracy"])


def test_no_best_epoch_without_a_holdout(load_arm):
    assert load_arm(["finished"], holdout=False).seeds[0].best is None


def test_runs_that_did_not_finish(load_arm):
    arm = load_arm(["diverged", "unfinished", None, "finished"])
    assert [run.state for run in arm.seeds] == ["diverged", "unfinished", "unfinished", "finished"]
    assert [run.seed for run in arm.diverged] == [0] and [run.seed for run in arm.finished] == [3]
    assert arm.seeds[0].message == "the loss is nan | <b>at 7</b>"
    assert [len(run.evaluations) for run in arm.seeds] == [2, 2, 0, 4]
    assert arm.outcomes == [arm.seeds[3].test]
    for run in arm.seeds[:3]:
        assert (run.test, run.updates, run.training_seconds, run.best) == (None,) * 4


def test_of_a_text_bits_per_byte_are_compared(load_arm, write_study, tmp_path):
    load_arm(["finished"])
    folder = tmp_path / "runs/digits_cnn/adaptive/seed0"
    rows = [
        {**row, "tokens": 64 * row["samples"], "test_bits_per_byte": 3 - row["epoch"] / 4}
        | {"holdout_bits_per_byte": 2 + abs(row["epoch"] - 2)}
        for row in rows_of(folder)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change_sealed(folder / "summary.json", test_bits_per_byte=1.75)
    arms = {"digits_cnn": {"adaptive": study_arms()["adaptive"]}}
    study = load_study(write_study(arms, seeds=[0], outcome="bits_per_byte", margin=0.01))
    (run,) = study.runs
    assert run.test == 1.75 and study.outcome.heading == "bits per byte"
    assert [e.test for e in run.evaluations] == [row["test_bits_per_byte"] for row in rows]
    assert [e.tokens for e in run.evaluations] == [64 * row["samples"] for row in rows]
    assert run.best.step == min(rows, key=lambda row: abs(row["epoch"] - 2))["step"]


def test_divergence_before_the_first_files(load_arm, tmp_path):
    folder = tmp_path / "runs/digits_cnn/adaptive/seed0"
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text('{"kind": "diverged", "message": "at once"}')
    run = load_arm([None]).seeds[0]
    assert (run.state, run.message, run.evaluations) == ("diverged", "at once", ())


def test_examples_that_drop_leaves_out_are_not_counted(load_arm):
    config = dataclasses.replace(study_arms()["fixed_large"], remainder="drop")
    arm = load_arm(["finished"], config)
    assert arm.examples == 4 * (NUM_EXAMPLES // 160) * 160


def test_settings_of_a_run_must_be_the_studys(write_run, write_study):
    arms = study_arms()
    write_run("digits_cnn", "adaptive", dataclasses.replace(arms["adaptive"], lr="0.1"), 0)
    with pytest.raises(UsageError, match="other settings than its arm"):
        load_study(write_study({"digits_cnn": arms}))


def test_the_datas_folder_is_no_setting(write_run, write_study):
    config = study_arms()["adaptive"]
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, dir="/elsewhere"))
    write_run("digits_cnn", "adaptive", moved, 0)
    study = load_study(write_study({"digits_cnn": {"adaptive": config}}))
    assert [run.state for run in study.runs] == ["finished", "unfinished", "unfinished"]


def test_folders_that_are_no_study(tmp_path):
    with pytest.raises(UsageError, match=r"has no study\.json"):
        load_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        load_study(tmp_path)


@pytest.mark.parametrize("name", study_arms())
@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_schedule_is_that_of_the_first_update_in_each_epoch(load_arm, name, remainder):
    config = dataclasses.replace(study_arms()[name], remainder=remainder)
    arm = load_arm(["unfinished"], config)
    firsts = {}
    for step in config.plan(NUM_EXAMPLES).steps():
        firsts.setdefault(step.start_sample // NUM_EXAMPLES, step)
    settings = schedule_points(arm)
    assert [s.epoch for s in settings] == [0, 1, 2, 3]
    assert [s.batch_size for s in settings] == [firsts[e].batch_size for e in range(4)]
    power = {"sqrt": 0.5}.get(name, 1)
    reference = config.reference_batch_size
    for s in settings:
        rate = 0.05 * 0.375**s.epoch * (s.batch_size / reference) ** power
        if name == "goyal" and s.epoch == 0:
            rate = 0.05
        assert s.learning_rate == pytest.approx(rate, rel=1e-6)


def test_adaptive_and_fixed_have_the_same_rate_per_example(load_arm, tmp_path):
    arm = load_arm(["unfinished"])
    ratios = [s.learning_rate / s.batch_size for s in schedule_points(arm)]
    assert ratios == pytest.approx([0.05 / 20 * 0.375**epoch for epoch in range(4)], rel=1e-6)
    assert [s.batch_size for s in schedule_points(arm)] == [20, 40, 80, 160]


def test_schedule_is_unknown_before_a_run_has_begun(load_arm):
    assert schedule_points(load_arm([None])) == ()


def test_seconds_per_epoch_by_batch_size(load_arm, tmp_path):
    arm = load_arm(["finished", "diverged", "finished"], pace=10.0)
    measured = epoch_seconds(arm)
    assert list(measured) == [20, 40, 80, 160]
    for number, size in enumerate(measured):
        expected = []
        for seed in (0, 2):
            rows = rows_of(tmp_path / f"runs/digits_cnn/adaptive/seed{seed}")
            ends = np.array([[0, 0], *([r["epoch"], r["training_seconds"]] for r in rows)])
            epochs, seconds = np.diff(ends, axis=0)[number]
            expected.append(seconds / epochs)
        assert measured[size] == pytest.approx(expected)


def test_speedups_pair_the_seeds(write_run, write_study):
    arms = {name: study_arms()[name] for name in ("fixed_small", "adaptive")}
    states = {"fixed_small": "fdfff", "adaptive": "fffuf"}
    names = {"f": "finished", "d": "diverged", "u": "unfinished"}
    for arm, letters in states.items():
        for seed, letter in enumerate(letters):
            pace = 10.0 + seed if arm == "fixed_small" else 5.0
            write_run("digits_cnn", arm, arms[arm], seed, pace=pace, state=names[letter])
    out = write_study({"digits_cnn": arms}, seeds=range(5))
    fixed, adaptive = load_study(out).experiments[0].arms
    seconds = [
        [arm.seeds[seed].training_seconds for seed in (0, 2, 4)] for arm in (fixed, adaptive)
    ]
    assert speedups(adaptive, fixed) == pytest.approx(np.divide(*seconds))


def test_speedups_compare_no_machines(write_run, write_study):
    arms = {name: study_arms()[name] for name in ("fixed_small", "adaptive")}
    other = {**ENVIRONMENT, "cpu": "Another Processor"}
    made = {
        "fixed_small": (ENVIRONMENT, other, other),
        "adaptive": (ENVIRONMENT, other, ENVIRONMENT),
    }
    for arm, environments in made.items():
        for seed, environment in enumerate(environments):
            write_run("digits_cnn", arm, arms[arm], seed, environment=environment)
    fixed, adaptive = load_study(write_study({"digits_cnn": arms})).experiments[0].arms
    seconds = [[arm.seeds[seed].training_seconds for seed in (0, 1)] for arm in (fixed, adaptive)]
    assert speedups(adaptive, fixed) == pytest.approx(np.divide(*seconds))
