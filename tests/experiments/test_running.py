"""The display of a study, its estimate of the time left, and the timing of passes."""

import dataclasses
import io
import time

import jax
import numpy as np
import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.system.files import write_sealed
from experiments.reproduction import passes
from experiments.reproduction.display import LiveStudyDisplay, StudyDisplay, make_display
from experiments.reproduction.estimate import Estimate
from experiments.reproduction.jobs import Job
from experiments.reproduction.outcomes import OUTCOMES

CONFIG = TrainConfig(batch_schedule="100", epochs=1)


def jobs(folder, arms, num_seeds=1):
    plan = CONFIG.plan(1000)
    return [
        Job("cnn", arm, f"seed {seed}", CONFIG, folder / arm / str(seed), plan, OUTCOMES["error"])
        for seed in range(num_seeds)
        for arm in arms
    ]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_time_left_by_arm(tmp_path):
    clock = Clock()
    all_jobs = jobs(tmp_path, ["slow", "quick"], num_seeds=2)
    estimate = Estimate(all_jobs, clock)
    assert estimate.seconds_left() is None
    estimate.begin(all_jobs[0])
    clock.now = 10.0
    estimate.advance(1)  # from now on 100 examples in 10 s
    assert estimate.seconds_left() == pytest.approx((900 + 3000) * 10 / 100)
    assert estimate.share_done == pytest.approx(100 / 4000)
    clock.now = 100.0
    estimate.advance(10)
    estimate.end()
    assert estimate.seconds_left() == pytest.approx(300)
    estimate.begin(all_jobs[1])
    estimate.advance(1)
    clock.now = 110.0
    estimate.advance(10)
    estimate.end()
    assert estimate.seconds_left() == pytest.approx(100 + 10)
    assert estimate.share_done == pytest.approx(0.5)


def test_time_left_counts_finished_runs_and_not_what_a_resumed_run_had_done(tmp_path):
    clock = Clock()
    all_jobs = jobs(tmp_path, ["a"], num_seeds=3)
    all_jobs[0].folder.mkdir(parents=True)
    write_sealed(
        all_jobs[0].folder / "summary.json", {"step": 10, "samples": 640, "total_seconds": 50.0}
    )
    estimate = Estimate(all_jobs, clock)
    assert estimate.seconds_left() == pytest.approx(100)
    estimate = Estimate(all_jobs[1:], clock)
    estimate.begin(all_jobs[1])
    clock.now = 6.0
    estimate.advance(9)  # after 8 updates of an earlier process
    assert estimate.seconds_left() == pytest.approx((100 + 1000) * 6 / 100)


def test_lines_say_a_warning_once_and_no_more(tmp_path):
    stream, clock = io.StringIO(), Clock()
    first, second = jobs(tmp_path, ["a"], num_seeds=2)
    display = StudyDisplay([first, second], stream, clock)
    for job in (first, second):
        display.begin(job)
        display.message("warning: adamw")
        display.message("phase 2 of 5")
        for step in range(1, 11):
            clock.now += 1
            display.log({"step": step, "train_loss": 0.5, "test_accuracy": 0.9})
            display.tick(step)
        job.folder.mkdir(parents=True)
        write_sealed(
            job.folder / "summary.json",
            {"test_accuracy": 0.975, "step": 10, "samples": 640, "total_seconds": 10.0},
        )
        display.end()
    assert [" ".join(line.split()) for line in stream.getvalue().splitlines()] == [
        "warning: adamw",
        "run 1 of 2 a seed 0 test error 2.50 % 10 updates 10 s 0:10 left",
        "run 2 of 2 a seed 1 test error 2.50 % 10 updates 10 s",
    ]


def test_a_long_run_is_heard_of_every_two_minutes(tmp_path):
    stream, clock = io.StringIO(), Clock()
    (job,) = jobs(tmp_path, ["a"])
    display = StudyDisplay([job], stream, clock)
    display.begin(job)
    for step in range(1, 10):
        clock.now += 50
        display.tick(step)
    lines = stream.getvalue().splitlines()
    assert [line.split("left")[0].split()[-1] for line in lines] == ["5:50", "3:20", "0:50"]
    assert "epoch 0.3/1" in lines[0] and "run 1 of 1  a  seed 0" in lines[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_live_display(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    stream = Terminal()
    first, second = jobs(tmp_path, ["adaptive"], num_seeds=2)
    display = make_display([first, second], stream)
    assert isinstance(display, LiveStudyDisplay)
    display.start()
    display.begin(first)
    time.sleep(0.01)
    display.log({"step": 5, "learning_rate": 0.1, "train_loss": 0.5})
    display.tick(5)
    display.stop()
    assert "run 1 of 2 adaptive seed 0" in stream.getvalue()
    assert " 25 %" in stream.getvalue() and " left" in stream.getvalue()
    assert "epoch 0.5/1   phase 1/1   batch 100   lr 0.1   loss 0.5000" in stream.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_display([first], Terminal())) is StudyDisplay


@pytest.fixture
def loss_fn():
    def loss_fn(params, model_state, batch, rng):
        weight = batch["weight"]
        errors = (params["w"] * batch["label"] - batch["index"]) ** 2
        loss = (errors * weight).sum() / weight.sum()
        return loss, ({"seen": model_state["seen"] + weight.sum()}, {})

    return loss_fn


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_passes_compute_what_training_computes(loss_fn, microbatch_size):
    layout = Layouts(microbatch_size, num_devices=2).of(10)
    batch = passes._synthetic_batch(layout, layout.num_microbatches, (2, 2, 1), 10)
    assert batch["weight"].sum() == 10
    arguments = {"w": np.float32(0.5)}, {"seen": np.float32(0)}, batch, jax.random.key(0)
    real = batch["weight"] > 0
    label, index = (batch[name][real].astype(np.float64) for name in ("label", "index"))
    outputs = jax.jit(passes._forward_and_backward(loss_fn))(*arguments)
    expected = np.mean(2 * (0.5 * label - index) * label)
    assert float(outputs.grads["w"]) == pytest.approx(expected, rel=1e-5)
    state, losses = jax.jit(passes._forward(loss_fn))(*arguments)
    assert float(state["seen"]) == 10
    rows = batch["weight"].sum(axis=1)
    mean = (np.asarray(losses) * rows).sum() / 10
    assert mean == pytest.approx(np.mean((0.5 * label - index) ** 2), rel=1e-5)


def test_passes_of_each_phase(monkeypatch):
    shapes = []

    def seconds(function, arguments):
        shapes.append(arguments[2]["image"].shape)
        return 3.0 if len(shapes) % 2 else 10.0

    monkeypatch.setattr(passes, "_median_seconds", seconds)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    config = TrainConfig(batch_schedule="32 x2 every 1ep max 320", epochs=5, microbatch_size=32)
    cache = {}
    rows = passes.measure_passes(config, config.plan(320), cache)
    assert [row["updates"] for row in rows] == [10, 5, 3, 1, 1]
    assert [row["batch_size"] for row in rows] == [32, 64, 128, 256, 320]
    # Of 8 and 10 micro-batches 4 are measured.
    assert [row["forward_seconds"] for row in rows] == [3, 3, 3, 6, 7.5]
    assert [row["backward_seconds"] for row in rows] == [7, 7, 7, 14, 17.5]
    assert shapes[::2] == [(k, 32, 8, 8, 1) for k in (1, 2, 4, 4, 4)]
    other = dataclasses.replace(config, lr="1", batch_schedule="64", seed=3)
    assert passes.measure_passes(other, other.plan(320), cache)[0]["forward_seconds"] == 3
    assert len(shapes) == 10


def test_passes_take_time():
    config = TrainConfig(batch_schedule="16", epochs=1)
    (row,) = passes.measure_passes(config, config.plan(160), {})
    assert row["updates"] == 10 and row["forward_seconds"] > 0 <= row["backward_seconds"]
