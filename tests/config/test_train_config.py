"""The configuration: validation, files, and what it is made into."""

import dataclasses
import json
from pathlib import Path

import pytest

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.config.files import load_config
from adabatch_jax.runs.folder.workdir import default_workdir
from adabatch_jax.schedules.batch_size_schedules import exponential_growth
from adabatch_jax.schedules.learning_rate_text import parse_learning_rate
from adabatch_jax.system.errors import UsageError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_json_round_trip():
    config = TrainConfig(epochs=7, microbatch_size=32, data=DataSettings(flip=True))
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.digest == config.digest
    assert type(config.epochs) is float


def test_objects_are_kept_as_texts():
    config = TrainConfig(
        batch_schedule=exponential_growth(64, 2, "5ep", 512), lr=parse_learning_rate("0.1 cosine")
    )
    assert (config.batch_schedule, config.lr) == ("64 x2 every 5ep max 512", "0.1 cosine")


def test_other_settings_another_folder():
    folders = {default_workdir(TrainConfig(seed=seed)) for seed in range(5)}
    assert len(folders) == 5
    assert default_workdir(TrainConfig(name="mine")).name.startswith("mine-")


def test_fractions_of_an_epoch_are_exact():
    assert TrainConfig(epochs=0.1).plan(1000).num_samples == 100
    assert str(TrainConfig(epochs=2.5).duration) == "2.5ep"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": "ten"}, "epochs: must be float, got 'ten'"),
        ({"seed": 1.5}, "seed: must be int, got 1.5"),
        ({"seed": True}, "seed: must be int, got True"),
        ({"momentum": -0.1}, "momentum: must be at least 0, got -0.1"),
        ({"epochs": float("inf")}, "epochs: must be above 0 and finite"),
        ({"momentum": 10**400}, "momentum: must be float, got 1000"),
        ({"lr": "1e400"}, "lr: can't read the learning rate '1e400'"),
        ({"batch_schedule": "9" * 5000}, "batch_schedule: can't read the batch schedule '999"),
        ({"batch_schedule": "1__6"}, "batch_schedule: can't read the batch schedule '1__6'"),
        ({"eval_every": "1__0ep"}, "eval_every: the duration '1__0ep' begins with no number"),
        ({"on_nan": "skip:" + "9" * 5000}, "on_nan: 'skip:999"),
        ({"device_memory": "9" * 400 + "GB"}, "device_memory: '999"),
        ({"microbatch_size": 0}, "microbatch_size: must be at least 1"),
        ({"data": {"flip": True}}, "data: must be DataSettings"),
        ({"data": DataSettings(crop_padding="4")}, "data.crop_padding: must be int, got '4'"),
        ({"data": DataSettings(image_size=0)}, "data.image_size: can't be 0"),
        ({"lr": "fast"}, "lr: can't read the learning rate 'fast'"),
        ({"coupling": "linar"}, "coupling: unknown coupling 'linar'.*did you mean 'linear'"),
        ({"name": "a/b"}, "name: 'a/b' can't be a folder's name"),
    ],
)
def test_mistakes_name_the_field(fields, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize("coupling", ["none", "linear", "sqrt", "0.75", "1/3"])
def test_couplings(coupling):
    assert TrainConfig(coupling=coupling).coupling == coupling


def test_experiments_load_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(str(EXPERIMENTS / "digits.py")) == TrainConfig()
    adaptive, fixed = (
        load_config(str(EXPERIMENTS / f"fashion_mnist_resnet20_{arm}.py"))
        for arm in ("adabatch", "fixed")
    )
    differing = {
        field.name
        for field in dataclasses.fields(TrainConfig)
        if getattr(adaptive, field.name) != getattr(fixed, field.name)
    }
    assert differing == {"name", "batch_schedule"}
    assert adaptive.plan(60_000).batch_sizes == (128, 256, 512, 1024)


def test_an_arm_of_a_file(tmp_path):
    from experiments.digits_cnn import arms

    assert load_config(f"{EXPERIMENTS / 'digits_cnn.py'}:smith") == arms["smith"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("digits_cnn.py", "the command line names none; write .*digits_cnn.py:ARM with one of fix"),
        ("digits_cnn.py:fixed", "has no arm 'fixed'; write .*:ARM with one of fixed_small, "),
        ("digits.py:fixed", "doesn't define `arms"),
        ("digits_c.py:fixed", "there is no file .*digits_c.py'"),
    ],
)
def test_an_arm_that_is_not_there(path, text):
    with pytest.raises(UsageError, match=text):
        load_config(str(EXPERIMENTS / path))


@pytest.mark.parametrize(
    ("batch_schedule", "microbatch_size", "rows"),
    [("48", 32, None), ("16 x2 every 5ep", 32, 16), ("32 x2 every 5ep max 128", None, None),
     ("64", 48, 48), ("80", None, 80)],
)  # fmt: skip
def test_batchnorm_groups_divide_what_is_computed_at_a_time(batch_schedule, microbatch_size, rows):
    config = TrainConfig(
        batch_schedule=batch_schedule, microbatch_size=microbatch_size, batchnorm_group_size=32
    )
    if rows is None:
        config.plan(400)
    else:
        with pytest.raises(UsageError, match=f"batchnorm_group_size: 32 must divide the {rows} "):
            config.plan(400)
