"""A setting is declared once, and what follows from that."""

import inspect

import numpy as np
import pytest

import adabatch_jax as ab
from adabatch_jax.config import TrainConfig
from adabatch_jax.config.declarations import Role, check, declarations, flag, setting, settings
from adabatch_jax.runs.resuming import CHANGEABLE
from adabatch_jax.system.errors import UsageError


@pytest.mark.parametrize("declared", [4, flag(4, help="Rows.")])
def test_a_field_without_a_role_is_refused(declared):
    with pytest.raises(TypeError, match="Further.rows has no role"):

        @settings
        class Further:
            """One field more."""

            rows: int = declared


def test_a_field_with_a_role_is_checked_and_documented():
    @settings
    class Further:
        """One field more."""

        rows: int = setting(4, Role.LAYOUT, help="Rows.", at_least=1, below=9)

        def __post_init__(self):
            check(self)

    assert Further(np.int64(8)).rows == 8 and type(Further(np.int64(8)).rows) is int
    assert "rows: Rows. Default: 4." in Further.__doc__
    for rows in (0, 9, "8", None):
        with pytest.raises(UsageError, match="^rows: must be "):
            Further(rows)


def test_the_command_and_fit_have_the_same_defaults():
    config, parameters = TrainConfig(), inspect.signature(ab.fit).parameters
    assert config.layout == parameters["layout"].default == ab.Layout()
    assert config.keep == parameters["keep"].default == ab.Keep()
    assert parameters["operation"].default == ab.Operation(on_nan=config.on_nan)
    for name in ("seed", "eval_every", "checkpoint_every", "log_every", "eval_batch_size"):
        assert getattr(config, name) == parameters[name].default, name


def test_fields_that_stand_in_two_places_are_of_one_type():
    for part, names in ((ab.Layout, {}), (ab.Keep, {"newest": "keep_checkpoints",
                        "best": "keep_best", "every": "keep_every"})):  # fmt: skip
        whole = declarations(TrainConfig)
        for name, declared in declarations(part).items():
            # A size or a duration is a number for programs alone: JSON and flags name its unit.
            assert set(whole[names.get(name, name)].kinds) >= set(declared.kinds) - {int}


def test_what_may_change_in_a_run():
    assert set(CHANGEABLE) == {
        "batch_schedule", "lr", "momentum", "weight_decay", "microbatch_size",
        "batchnorm_group_size", "batchnorm_reference_size", "compute_dtype", "data.crop_padding",
        "data.flip", "decay_on", "beta1", "beta2", "epsilon", "gpt.remat", "gpt.attention",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ab.Layout(microbatch_size=0), "microbatch_size"),
        (lambda: ab.Layout(4, "split", 2), "accumulation"),
        (lambda: ab.Layout(input="disk"), "input"),
        (lambda: ab.Keep(newest=0), "newest"),
        (lambda: ab.Keep(best="accuracy"), "best"),
        (lambda: ab.Keep(every=0), "every"),
        (lambda: ab.Operation(on_nan="ignore"), "on_nan"),
        (lambda: ab.Operation(on_save_error="ignore"), "on_save_error"),
        (lambda: ab.Operation(stall_timeout=0), "stall_timeout"),
        (lambda: ab.Operation(stall_timeout="5"), "stall_timeout"),
        (lambda: ab.Operation(profile="20:10"), "profile"),
    ],
)
def test_mistakes_are_found_where_they_are_made(make, name):
    with pytest.raises(UsageError, match=f"^{name}: "):
        make()


def test_texts_that_mean_numbers():
    assert ab.Layout(device_memory="1GiB") == ab.Layout(device_memory=2**30)
    assert ab.Operation(stall_timeout="1m30s").stall_timeout == 90.0
    assert ab.Layout("none").microbatch_size is None and ab.Keep(best="None").score is None
