"""Several processes stop behind the same update, save as one, and go on with what others saved."""

import shutil

import jax
import pytest

import adabatch_jax as ab
from tests.cluster import training
from tests.cluster.groups import run, sound

ALONE = ab.cluster.current()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder):
    """What one process with one device tells of the run in `one`, which it has finished."""
    mesh = training.make_mesh(jax.devices()[:1])
    return training.train(mesh, folder / "one", **training.SHARDED)


@pytest.fixture(scope="module")
def told(folder, one):
    """What two processes with two devices each tell, which sharded their weights over all four."""
    return sound(run(folder, ["stops", "checkpoints"], 2, 2, seconds=300))


def test_all_stop_behind_the_same_update_whoever_was_asked(told):
    names = ["SIGTERM", "Ctrl-C", "SIGUSR1", "--max-time", None]
    codes = [143, 130, 143, 143, 0]
    parts = [one["parts"] for one in told["stops"]]
    assert [part["name"] for part in parts[0]] == names
    for one_part, other in zip(*parts, strict=True):
        for key in ("start", "step", "stopped", "code", "name", "checkpoints", "bits", "rows"):
            assert one_part[key] == other[key], key
    assert [part["code"] for part in parts[0]] == codes
    assert [part["stopped"] for part in parts[0]] == [True, True, True, True, False]


def test_each_stop_has_one_checkpoint_which_the_next_part_goes_on_from(told):
    parts = told["stops"][0]["parts"]
    assert parts[0]["start"] == 0
    for before, part in zip(parts, parts[1:]):
        assert part["start"] == before["step"]
    for part in parts:
        assert str(part["step"]) in part["checkpoints"]
        assert not [name for name in part["checkpoints"] if not name.isdecimal()]


def test_a_run_that_was_stopped_again_and_again_has_the_bits_of_one_that_was_not(told):
    for one in told["stops"]:
        last, whole = one["parts"][-1], one["whole"]
        assert last["bits"] == whole["bits"]
        assert last["rows"] == whole["rows"]
        assert last["weights"] == whole["weights"]


def test_what_one_process_saved_several_restore_sharded_bit_for_bit(told, one):
    for restored in told["checkpoints"]:
        assert restored["one"]["bits"] == one["bits"]
        assert restored["one"]["start"] == one["step"]


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_what_several_saved_one_restores_bit_for_bit(told, folder, num_devices, tmp_path):
    shutil.copytree(folder / "whole", tmp_path / "run")
    mesh = training.make_mesh(jax.devices()[:num_devices])
    restored = training.train(mesh, tmp_path / "run", **training.SHARDED)
    whole = told["stops"][0]["whole"]
    assert restored["start"] == whole["step"]
    assert restored["bits"] == whole["bits"]
    assert restored["weights"] == whole["weights"]


def test_their_run_is_loaded_and_exported_as_any(told, folder):
    plan = training.make_plan(training.SHARDED["schedule"])
    like = ab.TrainState.create(
        params=training.make_params(),
        tx=training.optimizer(plan)[1],
        model_state={"seen": jax.numpy.zeros(3)},
    )
    loaded = ab.load_run(folder / "whole", like=like)
    assert training.bits(loaded.state) == told["stops"][0]["whole"]["bits"]


@pytest.mark.parametrize("process", [0, 1])
def test_a_flipped_bit_in_any_ones_part_is_noticed_by_all(told, process):
    """The checkpoint before is taken, and the run ends as it did."""
    whole = told["stops"][0]["whole"]
    for one in told["checkpoints"]:
        after = one[f"damaged-{process}"]
        assert after["start"] == 80, "the newest checkpoint but one"
        assert after["bits"] == whole["bits"]
        assert after["rows"] == whole["rows"]
    [note] = [m for m in told["checkpoints"][0][f"damaged-{process}"]["messages"] if "bad-" in m]
    assert f"state/parts-{process}/" in note
