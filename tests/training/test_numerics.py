"""What decides bits: all of it is found, and a command has its own where numbers would change."""

import json

import jax
import pytest

from adabatch_jax.training.numerics import MEANING, numerics, settle_for_commands


@pytest.fixture
def settings():
    """`settings(jax_enable_x64=True)`, until the test ends."""
    before = jax.config.values

    def update(**changes):
        for name, value in changes.items():
            jax.config.update(name, value)

    yield update
    update(**{name: value for name, value in before.items() if jax.config.values[name] != value})


def here():
    return numerics(jax.devices()[0])


def test_all_of_it_is_json_and_flat():
    found = here()
    assert json.loads(json.dumps(found)) == found
    assert not any(isinstance(value, dict) for value in found.values())
    assert found["threads"] >= jax.local_device_count() and found["instructions"]
    assert {"platform", "device_kind", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "jax", "numpy"} <= {*found}
    assert {name: found[name] for name in MEANING} == MEANING


@pytest.mark.parametrize(
    ("name", "value", "recorded"),
    [
        ("jax_enable_x64", True, True),
        ("jax_default_matmul_precision", "highest", "highest"),
        ("jax_explicit_x64_dtypes", "allow", "allow"),
        ("jax_disable_most_optimizations", True, True),
    ],
)
def test_a_setting_that_code_changes_is_found(settings, name, value, recorded):
    before = here()
    settings(**{name: value})
    assert {name: recorded} == {n: v for n, v in here().items() if v != before[n]}


def test_a_setting_of_a_context_is_found():
    with jax.enable_x64(True):
        assert here()["jax_enable_x64"] is True
    assert here()["jax_enable_x64"] is False


def test_a_command_has_its_own_and_says_so(settings):
    assert settle_for_commands() == []
    settings(
        jax_enable_x64=True,
        jax_threefry_partitionable=False,
        jax_random_seed_offset=3,
        jax_numpy_dtype_promotion="strict",
        jax_disable_jit=True,
        jax_default_matmul_precision="highest",
    )
    notes = settle_for_commands()
    assert len(notes) == 5
    assert notes[0].startswith("note: jax_enable_x64 is True in this environment and False for")
    assert settle_for_commands() == []
    assert here()["jax_default_matmul_precision"] == "highest"  # how it is computed is the user's
