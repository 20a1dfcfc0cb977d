"""Run directories with realistic numbers, without training anything."""

import json
import math

import pytest

from adabatch_jax.system.files import write_sealed

NUM_EXAMPLES = 50_000


def growing_phases(batch_sizes, epochs_each):
    """Phases of `epochs_each` epochs, batches straddling epochs, as the plan would have them."""
    phases, step, sample = [], 0, 0
    for index, batch_size in enumerate(batch_sizes):
        threshold = (index + 1) * epochs_each * NUM_EXAMPLES
        num_steps = math.ceil((threshold - sample) / batch_size)
        stop_sample = sample + num_steps * batch_size
        if index == len(batch_sizes) - 1:
            stop_sample = threshold
        phases.append(
            {
                "index": index,
                "start_step": step,
                "stop_step": step + num_steps,
                "start_sample": sample,
                "stop_sample": stop_sample,
                "batch_size": batch_size,
            }
        )
        step, sample = step + num_steps, stop_sample
    return phases


def metrics_rows(phases, learning_rates, examples_per_second=12_000.0):
    """A row every 200 steps and at every phase's end, where there is an evaluation too."""
    rows, seconds = [], 0.0
    for phase, learning_rate in zip(phases, learning_rates, strict=True):
        previous = phase["start_sample"]
        steps = sorted({*range(phase["start_step"], phase["stop_step"], 200), phase["stop_step"]})
        for step in steps[1:]:
            samples = phase["start_sample"] + (step - phase["start_step"]) * phase["batch_size"]
            samples = min(samples, phase["stop_sample"])
            rate = examples_per_second * phase["batch_size"] ** 0.25
            seconds += (samples - previous) / rate
            previous, epoch = samples, samples / NUM_EXAMPLES
            error = 0.06 + 0.5 * math.exp(-epoch / 8) + 0.01 * math.sin(step)
            row = {
                "step": step,
                "samples": samples,
                "epoch": epoch,
                "phase": phase["index"],
                "batch_size": phase["batch_size"],
                "learning_rate": learning_rate,
                "train_loss": 2.3 * math.exp(-epoch / 10) + 0.02 + 0.01 * math.sin(7 * step),
                "examples_digest": f"{samples:016x}",
            }
            if (step // 200) % 2 == 0 or step == phase["stop_step"]:
                row |= {"test_loss": 3 * error, "test_accuracy": 1 - error}
            rows.append(row | {"elapsed_seconds": seconds, "examples_per_second": rate})
    return rows


@pytest.fixture
def make_run(tmp_path):
    """Returns a function that writes a run directory and returns its path."""

    def make(
        folder="adabatch-1a2b3c4d",
        name="cifar10-adabatch",
        batch_sizes=(128, 256, 512, 1024),
        rows=None,
        finished=True,
        **settings,
    ):
        directory = tmp_path / folder
        directory.mkdir()
        phases = growing_phases(batch_sizes, epochs_each=20)
        learning_rates = [0.1 * 0.75**index for index in range(len(batch_sizes))]
        if rows is None:
            rows = metrics_rows(phases, learning_rates)
        config = {
            "name": name,
            "dataset": "cifar10",
            "model": "resnet20_cifar",
            "batch_schedule": f"{batch_sizes[0]}{' x2 every 20ep' * (len(batch_sizes) > 1)}",
            "lr": "0.1 x0.375 every 20ep",
            "coupling": "linear",
            "reference_batch_size": None,
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "epochs": 20.0 * len(batch_sizes),
            "seed": 0,
            "augmentation": {"crop_padding": 4, "flip": True},
            **settings,
        }
        plan = {
            "num_examples": NUM_EXAMPLES,
            "remainder": "carry",
            "divisible_by": 1,
            "duration": f"{20 * len(batch_sizes)}ep",
            "num_steps": phases[-1]["stop_step"],
            "num_samples": phases[-1]["stop_sample"],
            "phases": phases,
        }
        environment = {
            "command": "python -m adabatch_jax.train --seed 0",
            "python": "3.11.7",
            "cores": 2,
            "devices": {"cpu": 1},
            "packages": {"jax": "0.10.2", "numpy": "2.4.6"},
        }
        contents = {"config": config, "plan": plan, "environment": environment}
        if finished and rows:
            write_sealed(directory / "summary.json", summary_of(rows[-1]))
        for key, content in contents.items():
            (directory / f"{key}.json").write_text(json.dumps(content))
        lines = (json.dumps(row) + "\n" for row in rows)
        (directory / "metrics.jsonl").write_text("".join(lines))
        return directory

    return make


def summary_of(row):
    total = row.get("elapsed_seconds", 1.0)
    return {
        "step": row["step"],
        "samples": row["samples"],
        "epoch": row["epoch"],
        "train_loss": row["train_loss"],
        **{name: row[name] for name in ("test_loss", "test_accuracy") if name in row},
        "weights_digest": "9f86d081884c7d65",
        "examples_digest": row["examples_digest"],
        "num_parameters": 272_474,
        "compile_seconds": 0.06 * total,
        "step_seconds": 0.8 * total,
        "input_seconds": 0.02 * total,
        "evaluation_seconds": 0.07 * total,
        "checkpoint_seconds": 0.01 * total,
        "total_seconds": total,
    }
