"""Study folders with plausible numbers, without training anything."""

import dataclasses
import functools
import json
import math
import random

import pytest

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.schedules.plan import first_step_from
from adabatch_jax.system.files import write_sealed
from experiments.arms import single_device_arms

NUM_EXAMPLES = 1_000
ENVIRONMENT = {
    "python": "3.11.7",
    "platform": "Linux-6.1-x86_64",
    "cpu": "Some Processor",
    "cores": 2,
    "devices": {"cpu": 1},
    "packages": {"jax": "0.10.2", "numpy": "2.4.6"},
}


def study_arms(**changes):
    """Four epochs on 1,000 examples; the batch doubles after each."""
    base = TrainConfig(
        lr="0.05",
        epochs=4,
        data=DataSettings(train_split="train[:90%]", holdout_split="train[90%:]"),
    )
    base = dataclasses.replace(base, **changes)
    return single_device_arms(base, 20, 160, "0.375", "1ep", "1ep", cap=100)


def run_rows(config, seed, final_error, seconds_per_epoch, holdout=True):
    """A row with an evaluation at the end of each epoch; errors and seconds in a seeded jitter.

    The holdout error is lowest one epoch before the end, where the test error isn't.
    """
    plan, jitter = config.plan(NUM_EXAMPLES), random.Random(f"{seed} {config.batch_schedule}")
    epochs, rows, seconds = round(config.epochs), [], 0.0
    for epoch in range(1, epochs + 1):
        step = first_step_from(plan, epoch * NUM_EXAMPLES)
        seconds += seconds_per_epoch * jitter.uniform(0.95, 1.05)
        error = final_error + 60 * (math.exp(-epoch) - math.exp(-epochs))
        row = {
            "step": step,
            "samples": plan.samples_at(step),
            "epoch": plan.samples_at(step) / NUM_EXAMPLES,
            "batch_size": plan.batch_size_at(step - 1),
            "train_loss": 0.1,
            "test_loss": 0.2,
            "test_accuracy": 1 - error / 100,
            "training_seconds": seconds,
            "elapsed_seconds": 1.5 * seconds,
        }
        if holdout:
            row["holdout_accuracy"] = row["test_accuracy"] - (0.02 if epoch == epochs else 0)
        rows.append(row)
    return rows


def summary_of(plan, rows):
    seconds = rows[-1]["training_seconds"]
    return {
        "step": plan.num_steps,
        "samples": plan.num_samples,
        "test_accuracy": rows[-1]["test_accuracy"],
        "compile_seconds": 2.0,
        "step_seconds": 0.9 * seconds,
        "input_seconds": 0.1 * seconds,
        "evaluation_seconds": 0.5,
        "checkpoint_seconds": 0.25,
        "total_seconds": seconds + 3.0,
    }


def write_run_folder(
    out,
    experiment,
    arm,
    config,
    seed,
    error=8.0,
    pace=10.0,
    state="finished",
    holdout=True,
    environment=ENVIRONMENT,
):
    """Writes a run as training leaves it, with a summary, a failure, or neither."""
    folder = out / "runs" / experiment / arm / f"seed{seed}"
    folder.mkdir(parents=True)
    config = dataclasses.replace(config, seed=seed)
    plan, rows = config.plan(NUM_EXAMPLES), run_rows(config, seed, error, pace, holdout)
    contents = {
        "config": config.to_dict(),
        "plan": plan.to_dict(),
        "environment": environment,
    }
    if state == "finished":
        write_sealed(folder / "summary.json", summary_of(plan, rows))
    if state == "diverged":
        contents["failure"] = {"kind": "diverged", "message": "the loss is nan | <b>at 7</b>"}
    if state != "finished":
        rows = rows[: len(rows) // 2]
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text("".join(lines))


def change_sealed(path, **changes):
    """Changes a sealed file as if it had been written so."""
    content = json.loads(path.read_text())
    del content["digest"]
    write_sealed(path, content | changes)


def write_study_file(out, experiments, seeds=(0, 1, 2), **changes):
    """Writes study.json and returns the study's folder."""
    content = {
        "section": "digits",
        "title": "Handwritten digits",
        "dataset": "digits",
        "seeds": list(seeds),
        "holdout_percent": 10,
        "outcome": "error",
        "margin": 1.0,
        "command": "python -m experiments.reproduce digits --seeds 3",
        "arms": {
            name: {arm: config.to_dict() for arm, config in arms.items()}
            for name, arms in experiments.items()
        },
        "tuning": {},
        "passes": {},
        **changes,
    }
    (out / "study.json").write_text(json.dumps(content))
    return out


@pytest.fixture
def write_run(tmp_path):
    return functools.partial(write_run_folder, tmp_path)


@pytest.fixture
def write_study(tmp_path):
    return functools.partial(write_study_file, tmp_path)
