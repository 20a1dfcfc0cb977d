"""Flags from declarations: what is typed, and what it means."""

import dataclasses

import pytest

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.config.command_line import (
    command_arguments,
    flag_of,
    parse_arguments,
    parse_flags,
)
from adabatch_jax.config.declarations import check, flag
from adabatch_jax.system.errors import UsageError
from adabatch_jax.train import Options


def parsed(line):
    return parse_arguments(Options, line.split(), "train", "")


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("", {}),
        ("--lr 0.1 x0.5 every 2ep --seed 3", {"lr": "0.1 x0.5 every 2ep", "seed": 3}),
        ("--lr=0.1 x0.5 every 2ep", {"lr": "0.1 x0.5 every 2ep"}),
        ("--keep_best min test_loss --weight_decay=1e-3",
         {"keep_best": "min test_loss", "weight_decay": 1e-3}),
        ("--microbatch-size None --steps-per-dispatch 4",
         {"microbatch_size": None, "steps_per_dispatch": 4}),
        ("--microbatch-size 8 --microbatch-size auto --name 7", {"name": "7"}),
        ("--data.flip --data.crop-padding 2", {"data": DataSettings(flip=True, crop_padding=2)}),
        ("--data.flip --data.no-flip --shard-params", {"shard_params": True}),
    ],
)  # fmt: skip
def test_what_is_typed(line, fields):
    assert parsed(line)[1] == TrainConfig(**fields)


def test_a_file_gives_the_defaults(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from adabatch_jax.config import TrainConfig, DataSettings\n"
        "arms = {'a': TrainConfig(seed=5, epochs=3, data=DataSettings(flip=True))}\n"
    )
    _, config = parsed(f"--epochs 4 --config {file}:a --data.crop-padding 1")
    data = DataSettings(flip=True, crop_padding=1)
    assert config == TrainConfig(seed=5, epochs=4, data=data)


def test_epochs_and_duration_take_each_others_place(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from adabatch_jax.config import TrainConfig\n"
        "arms = {'a': TrainConfig(epochs=3), 'b': TrainConfig(duration='90st')}\n"
    )
    _, config = parsed(f"--duration 1500st --config {file}:a")
    assert config == TrainConfig(duration="1500st")
    assert command_arguments(config, f"{file}:a") == f"--config {file}:a --duration 1500st"
    _, config = parsed(f"--epochs 20 --config {file}:b")
    assert config == TrainConfig()
    assert command_arguments(config, f"{file}:b") == f"--config {file}:b --epochs 20"
    with pytest.raises(UsageError, match="epochs and duration: give one of them, not both"):
        parsed("--epochs 3 --duration 1500st")


def test_a_list_ends_at_the_next_flag():
    options, config = parsed("--allow-change lr momentum --seed 1 --max-time 3h")
    assert options == Options(allow_change=("lr", "momentum"), max_time="3h")
    assert config == TrainConfig(seed=1)


def test_a_value_may_begin_with_a_dash():
    options, config = parsed("--workdir=--seed=3 --seed=4")
    assert options == Options(workdir="--seed=3") and config == TrainConfig(seed=4)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--datset digits", "there is no flag --datset; did you mean '--dataset'?"),
        ("digits", "there is no flag digits."),
        ("--seed", "--seed: expected one argument."),
        ("--max-time 90", "--max-time: the time '90' has no unit; write it as "),
        ("--on-save-error wran", "--on-save-error: 'wran' is not one of stop, warn; did you"),
    ],
)
def test_mistakes(line, sentence):
    with pytest.raises(UsageError) as caught:
        parsed(line)
    assert str(caught.value).startswith(sentence)


def test_a_positional_argument_and_lists_of_numbers():
    @dataclasses.dataclass(frozen=True)
    class Scales:
        scales: tuple[float, ...] = flag((1.0,), help="Factors.", above=0)

        def __post_init__(self):
            check(self, flag_of)

    def read(line):
        return parse_flags(line.split(), "scale", "", Scales(), positional="NAME")

    assert read("it --scales 0.5 2") == (Scales((0.5, 2.0)), "it")
    for line, text in (("--scales 1", "NAME"), ("it --scales 1 x", "--scales: .*'x'"),
                       ("it --scales 0", "--scales: must be above 0")):  # fmt: skip
        with pytest.raises(UsageError, match=text):
            read(line)
