"""Going on where bits are decided otherwise: what is kept, what is told, what is refused."""

import os

import jax
import pytest

from adabatch_jax.config import Operation
from adabatch_jax.runs.folder.folder_reading import CHECKPOINTS, find_checkpoint
from adabatch_jax.runs.kept_numerics import keep_threads
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.environment import usable_cores
from adabatch_jax.system.errors import RestoreError
from tests.run_folders import content, write_checkpoint
from tests.runs.small_run import N, train
from tests.runs.test_another_layout import Said

PLAN = make_plan("4, 1ep: 8", N, "3ep")


@pytest.fixture
def begun(tmp_path):
    """A run that was stopped after 13 updates."""
    train(PLAN, tmp_path, on_step=lambda finished, *_: finished == 13)
    return tmp_path


def test_the_same_again_says_nothing(begun):
    said = Said()
    result = train(PLAN, begun, operation=Operation(progress=said))
    assert result.summary["decisions"] == [] and not any("rounded" in text for text in said.texts)
    assert result.summary["weights_digest"] == train(PLAN).summary["weights_digest"]


def test_what_rounds_otherwise_is_told_in_one_line_and_recorded(begun, monkeypatch):
    said = Said()
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    with jax.default_matmul_precision("highest"):
        result = train(PLAN, begun, operation=Operation(progress=said))
    told = [text for text in said.texts if "rounded" in text]
    assert told == [
        "note: from update 13 on results may be rounded differently: NCCL_ALGO none -> Ring, "
        "jax_default_matmul_precision none -> highest"
    ]
    common = {"kind": "numerics", "step": 13}
    assert result.summary["decisions"] == [
        {**common, "setting": "NCCL_ALGO", "from": [], "to": ["Ring"]},
        {**common, "setting": "jax_default_matmul_precision", "from": None, "to": "highest"},
    ]
    # What its checkpoints say from here on.
    found, _ = find_checkpoint(begun)
    assert found.run["numerics"]["jax_default_matmul_precision"] == "highest"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_threefry_partitionable", False),
        ("jax_default_prng_impl", "rbg"),
        ("jax_random_seed_offset", 1),
    ],
)
def test_what_changes_types_or_random_numbers_is_refused(begun, name, value):
    before, here = content(begun), getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(RestoreError) as caught:
            train(PLAN, begun)
    finally:
        jax.config.update(name, here)
    assert f"has {name}={here!r}, not {value!r}, which" in str(caught.value)
    assert f"jax.config.update({name!r}, {here!r})" in str(caught.value)
    assert content(begun) == before
    assert train(PLAN, begun).summary["weights_digest"] == train(PLAN).summary["weights_digest"]


@pytest.fixture
def threads(monkeypatch):
    """`threads()`: what a command has chosen, if anything."""
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda: os.environ.get("PJRT_NPROC")


def test_a_run_keeps_its_threads(tmp_path, threads):
    assert keep_threads(tmp_path) is None
    others = usable_cores() + 5
    write_checkpoint(tmp_path, 10, numerics={"threads": others})
    damaged = write_checkpoint(tmp_path, 20, numerics={"threads": others + 1}) / "manifest"
    damaged.write_bytes(damaged.read_bytes() + b" ")
    note = keep_threads(tmp_path)
    assert note.startswith(f"note: the run keeps the {others} threads that it was begun with")
    assert threads() == str(others)


@pytest.mark.parametrize(
    ("saved", "cpu_devices"),
    [({"threads": usable_cores()}, None), ({}, None), ({"threads": 2}, 3), ({"threads": 99}, 99)],
)
def test_threads_that_are_there_or_cannot_be_had_are_not_set(tmp_path, threads, saved, cpu_devices):
    write_checkpoint(tmp_path, 10, numerics=saved)
    assert keep_threads(tmp_path, cpu_devices) is None and threads() is None


def test_the_users_number_of_threads_counts(tmp_path, threads, monkeypatch):
    write_checkpoint(tmp_path, 10, numerics={"threads": 99})
    monkeypatch.setenv("NPROC", "1")
    assert keep_threads(tmp_path) is None and threads() is None


def test_a_folder_that_cannot_be_read_is_told_later(tmp_path, threads):
    (tmp_path / CHECKPOINTS).touch()
    assert keep_threads(tmp_path) is None
