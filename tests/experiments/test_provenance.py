import dataclasses
import shlex
from pathlib import Path

import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.config.command_line import parse_arguments
from adabatch_jax.train import Options
from experiments.reproduction import provenance
from experiments.reproduction.adjustments import with_epochs, with_holdout, with_lr_scale
from experiments.reproduction.results import load_study
from experiments.sections import load_arms
from tests.experiments.conftest import ENVIRONMENT, study_arms


def changed(config, **fields):
    return dataclasses.replace(config, **fields)


CHANGES = {
    "nothing": lambda config: config,
    "holdout": lambda config: with_holdout(config, 10),
    "tuned": lambda config: with_lr_scale(config, 0.5),
    "shorter": lambda config: with_epochs(config, 10),
    "types": lambda config: changed(
        config,
        dataset="fashion_mnist",
        compute_dtype="bfloat16",
        microbatch_size=64,
        reference_batch_size=None,
        data=changed(config.data, flip=True, dir="/somewhere"),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("arm", ["adaptive", "goyal"])
def test_command_trains_the_arm_again(change, arm, monkeypatch):
    written = load_arms("digits_cnn")[arm]
    config = change(written)
    command = provenance.train_command("digits_cnn", arm, config, 7, written)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "adabatch_jax.train"]
    monkeypatch.chdir(Path(__file__).parents[2])
    _, parsed = parse_arguments(Options, words[3:], "train", "")
    data = changed(config.data, dir=None)
    assert parsed == changed(config, seed=7, data=data)


def test_command_of_an_unchanged_arm_is_short():
    written = load_arms("digits_cnn")["smith"]
    assert provenance.train_command("digits_cnn", "smith", written, 0, written) == (
        "python -m adabatch_jax.train --config experiments/digits_cnn.py:smith --seed 0"
    )


def test_settings_that_differ_and_those_in_common(write_study):
    out = write_study({"digits_cnn": study_arms(data=TrainConfig().data)})
    arms = load_study(out).experiments[0].arms
    table = provenance.differing_settings(arms)
    assert table.header == ("arm", "batch_schedule", "lr", "coupling", "reference_batch_size")
    assert table.rows[2] == ("adaptive", "20 x2 every 1ep max 160", "0.05 x0.375 every 1ep",
                             "linear", "20")  # fmt: skip
    common = provenance.common_settings(arms)
    for text in ("model cnn_digits", "momentum 0.9", "epochs 4", "data.flip no"):
        assert text in common
    for name in ("seed", "data.dir", "coupling"):
        assert f" {name} " not in common


def test_machines_are_told_apart(write_run, write_study):
    config = study_arms()["adaptive"]
    other = {**ENVIRONMENT, "devices": {"NVIDIA H100": 4}}
    for seed, environment in enumerate([ENVIRONMENT, other, ENVIRONMENT]):
        write_run("digits_cnn", "adaptive", config, seed, environment=environment)
    made = provenance.machines(load_study(write_study({"digits_cnn": {"adaptive": config}})))
    first, second = made
    assert first.hardware == "JAX devices: cpu; 2 cores of Some Processor"
    assert second.hardware == "JAX devices: 4 x NVIDIA H100; 2 cores of Some Processor"
    assert first.software == "Python 3.11.7, jax 0.10.2, numpy 2.4.6, Linux"
    assert list(made.values()) == [["adaptive seed 0", "adaptive seed 2"], ["adaptive seed 1"]]
