"""The configuration: validation, files, and what it is made into."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.config.declarations import declarations
from adabatch_jax.config.files import load_config
from adabatch_jax.runs.folder.workdir_choice import default_workdir
from adabatch_jax.schedules.batch_size_schedules import exponential_growth
from adabatch_jax.schedules.free_schedules import sampled
from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.learning_rate_text import parse_learning_rate
from adabatch_jax.schedules.schedule_text import joined
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


def test_the_default_ends_at_the_same_batch_and_rate_whatever_its_length():
    in_epochs = TrainConfig(batch_schedule="32 x2 every 4ep max 512", lr="0.05 x0.375 every 4ep")
    for epochs in (20, 100, 5):
        config = TrainConfig(epochs=epochs)
        plan = config.plan(1442)
        rate = resolve(plan, config.learning_rate)
        assert plan.batch_sizes == (32, 64, 128, 256, 512)
        assert rate.at(plan.num_steps - 1) == np.float32(0.05 * 0.75**4)
        if epochs == 20:
            same = in_epochs.plan(1442)
            assert plan.phases == same.phases and plan.num_steps == 351
            steps = np.arange(351)
            wanted = resolve(same, in_epochs.learning_rate)(np, steps)
            np.testing.assert_array_equal(rate(np, steps), wanted)


def test_fractions_of_an_epoch_are_exact():
    assert TrainConfig(epochs=0.1).plan(1000).num_samples == 100
    assert str(TrainConfig(epochs=2.5).length) == "2.5ep"


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"epochs": "ten"}, "epochs", "'ten'"),
        ({"seed": 1.5}, "seed", "1.5"),
        ({"seed": True}, "seed", "True"),
        ({"seed": 2**32}, "seed", "4294967296"),
        ({"momentum": -0.1}, "momentum", "-0.1"),
        ({"weight_decay": float("nan")}, "weight_decay", "nan"),
        ({"epochs": float("inf")}, "epochs", "inf"),
        ({"epochs": 0}, "epochs", "0.0"),
        ({"momentum": 10**400}, "momentum", "1000"),
        ({"reference_batch_size": 10**400}, "reference_batch_size", "2147483648"),
        ({"steps_per_dispatch": 10**30}, "steps_per_dispatch", "2147483648"),
        ({"batchnorm_reference_size": 2**31}, "batchnorm_reference_size", "2147483648"),
        ({"device_memory": 10**400}, "device_memory", "1000"),
        ({"lr": "1e400"}, "lr", "'1e400'"),
        ({"batch_schedule": "9" * 5000}, "batch_schedule", "'999"),
        ({"batch_schedule": "1__6"}, "batch_schedule", "'1__6'"),
        ({"eval_every": "1__0ep"}, "eval_every", "'1__0ep'"),
        ({"keep_every": "0ep"}, "keep_every", "'0ep'"),
        ({"on_nan": "skip:" + "9" * 5000}, "on_nan", "'skip:999"),
        ({"device_memory": "9" * 400 + "GB"}, "device_memory", "'999"),
        ({"microbatch_size": 0}, "microbatch_size", "0"),
        ({"microbatch_size": "atuo"}, "microbatch_size", "'atuo'"),
        ({"data": {"flip": True}}, "data", "True"),
        ({"lr": "fast"}, "lr", "'fast'"),
        ({"coupling": "linar"}, "coupling", "'linar'"),
        ({"name": "a/b"}, "name", "'a/b'"),
        ({"accumulation": "split"}, "accumulation", "microbatch_size a number"),
    ],
)
def test_mistakes_name_the_field_and_the_value(fields, name, value):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**fields)
    assert str(caught.value).startswith(f"{name}: ") and value in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"crop_padding": "4"}, "crop_padding"), ({"image_size": 0}, "image_size"),
     ({"dir": "a\0"}, "dir")],
)  # fmt: skip
def test_mistakes_about_the_data_too(fields, name):
    with pytest.raises(UsageError, match=f"^data.{name}: "):
        DataSettings(**fields)


def test_one_sentence_of_each_kind():  # golden
    sentences = {
        "optimizer": ("sdg", "'sdg' is not one of sgd, adamw, muon; did you mean 'sgd'?"),
        "steps_per_dispatch": ("atuo", "'atuo' is not one of a whole number, auto; did you mean "
                               "'auto'?"),
        "seed": (-1, "must be at least 0, got -1."),
        "epochs": ("ten", "must be a number or none, got 'ten'."),
        "log_every": ("0st", "a period must be longer than nothing, got '0st'."),
    }  # fmt: skip
    for name, (value, sentence) in sentences.items():
        with pytest.raises(UsageError) as caught:
            TrainConfig(**{name: value})
        assert str(caught.value) == f"{name}: {sentence}"


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


def test_an_arm_of_a_file():
    from experiments.digits_cnn import arms

    assert load_config(f"{EXPERIMENTS / 'digits_cnn.py'}:smith") == arms["smith"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("digits_cnn.py", "digits_cnn.py:ARM .*fixed_small"),
        ("digits_cnn.py:fixed", "'fixed'.*:ARM .*fixed_small, "),
        ("digits.py:fixed", "digits.py.*`arms"),
        ("digits_c.py:fixed", "digits_c.py'"),
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
        with pytest.raises(UsageError, match=f"batchnorm_group_size: 32 .* {rows} "):
            config.plan(400)


def test_a_group_that_is_left_empty_has_its_defaults():
    assert TrainConfig.from_dict({"data": {}}) == TrainConfig()
    with pytest.raises(UsageError, match="seed"):
        TrainConfig.from_dict({"seed": {}})


@pytest.mark.parametrize("name", ["log_every", "eval_every", "checkpoint_every", "keep_every"])
def test_a_period_has_a_unit(name):
    with pytest.raises(UsageError, match=f"{name}: the duration '30' has no unit; units are ep"):
        TrainConfig(**{name: "30"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"seed": 1, "seed": 2}', "the field 'seed' comes twice"),
        ('{"data": {"flip": true}, "data": {}}', "the field 'data' comes twice"),
        ('{"seed": ' + "[" * 100_000 + "]" * 100_000 + "}", "is no JSON"),
        ('{"seed": ' + "9" * 5_000 + "}", "is no JSON"),
        ('{"epochs": NaN}', "epochs"),
        ('{"lr": Infinity}', "lr"),
        ("\ufeff{}", "is no JSON"),
        ('{"data": {"crop_padding": 32768}}', "data.crop_padding: must be below 32768"),
        ('{"data": {"image_size": 2147483647}}', "data.image_size: must be below 32768"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path, text, reason):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=re.escape(reason)):
        load_config(str(tmp_path / "config.json"))


@pytest.mark.parametrize("name", declarations(TrainConfig))
@pytest.mark.parametrize(
    "value", [None, True, -1, 1.5, "", "\0", [], [1], {"a": 1}, 10**30, 10**400, "9" * 5000, "-1"]
)
def test_whatever_a_field_is_it_is_taken_or_refused(name, value):
    group, _, field = name.rpartition(".")
    try:
        TrainConfig.from_dict({group: {field: value}} if group else {field: value})
    except UsageError:
        pass


def test_a_duration_in_place_of_epochs():
    config = TrainConfig(duration="1500st")
    assert (config.epochs, config.duration, str(config.length)) == (None, "1500st", "1500st")
    assert config.plan(1000).num_steps == 1500
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig.from_dict({"duration": "1500st"}) == config
    assert TrainConfig.from_dict({"epochs": 3}) == TrainConfig(epochs=3)
    assert (TrainConfig().epochs, TrainConfig().duration) == (20.0, None)
    tokens = TrainConfig(
        batch_schedule="16, 20Ktok: 32", duration="50Ktok", tokens_per_example=32
    ).plan(1000)
    assert tokens.num_samples == 1563 and tokens.phases[1].start_sample == 640


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 20, "duration": "5ep"}, "epochs and duration: give one of them, not both"),
        ({"duration": "1500"}, "duration: the duration '1500' has no unit; units are ep"),
        ({"duration": "30%"}, "duration: .* can't be a share of itself"),
        ({"duration": "0st"}, "duration: .* longer than nothing"),
        ({"batch_schedule": sampled(len, "1ep")}, "batch_schedule: sampled.* no text of a conf"),
        (
            {"batch_schedule": joined({0: 8, "1ep": sampled(len, "1ep")})},
            "batch_schedule: .* list its sizes",
        ),
    ],
)
def test_lengths_and_schedules_that_cannot_be(fields, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**fields)


def test_a_joined_schedule_is_a_text():
    schedule = joined({"0ep": "8 x2 every 1ep max 32", "5ep": 64})
    assert TrainConfig(batch_schedule=schedule).schedule == schedule


def test_digests_are_those_that_runs_are_named_by():
    """Before there was `duration`."""
    base = TrainConfig(batch_schedule="32 x2 every 4ep max 512", lr="0.05 x0.375 every 4ep")
    assert base.digest.startswith("61e04c9e")
    assert dataclasses.replace(base, epochs=3).digest.startswith("9479d21a")
    others = [TrainConfig(duration="20ep"), TrainConfig(tokens_per_example=2)]
    assert len({config.digest for config in [TrainConfig(), *others]}) == 3
