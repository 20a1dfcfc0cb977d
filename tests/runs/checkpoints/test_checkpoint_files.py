"""What is restored is what was written, on any devices, or nothing is restored."""

import dataclasses
import errno
import os
import random
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch_jax.runs.checkpoints import checkpoint_files
from adabatch_jax.runs.checkpoints.checkpoint_files import Contents, quieten_orbax
from adabatch_jax.runs.checkpoints.manifest import read_manifest, write_manifest
from adabatch_jax.runs.checkpoints.restoring import read_arrays, restore
from adabatch_jax.runs.checkpoints.verifying import Damaged, check_checkpoint, newest_good
from adabatch_jax.system.errors import RestoreError
from adabatch_jax.training.train_state import TrainState
from tests.runs.checkpoints.conftest import bits, laid_out, names, plain_state, written

LAYOUTS = [(1, False), (2, False), (4, False), (2, True), (4, True)]


def test_any_layout_is_restored_onto_any_other(tmp_path):
    state, digests = plain_state(), set()
    for number, layout in enumerate(LAYOUTS):
        found = written(tmp_path / str(number), laid_out(state, *layout))
        digests.add(repr(sorted(found.arrays.items())))
        for other in LAYOUTS:
            like = laid_out(plain_state(1), *other)
            restored = restore(found, like)
            assert bits(restored) == bits(state)
            shardings = [leaf.sharding for leaf in jax.tree.leaves(restored)]
            assert shardings == [leaf.sharding for leaf in jax.tree.leaves(like)]
    assert len(digests) == 1  # they don't depend on the layout


def test_arrays_are_as_free_to_move_as_before(tmp_path):
    """Otherwise a run that goes on would need other programs, and compile everything anew."""
    double = jax.jit(lambda state: jax.tree.map(lambda x: x, state))
    state = plain_state()
    found = written(tmp_path, state)
    there = jax.device_put(plain_state(1), jax.local_devices()[0])
    for like in (plain_state(1), there):
        restored = restore(found, like)
        assert bits(restored) == bits(state)
        free = [leaf.committed for leaf in jax.tree.leaves(restored)]
        assert free == [leaf.committed for leaf in jax.tree.leaves(like)]
        programs = [double.lower(one).as_text() for one in (like, restored)]
        assert programs[0] == programs[1]


def test_every_kind_of_leaf_comes_back(tmp_path):
    def state(seed):
        rng = np.random.default_rng(seed)
        params = {
            "empty": jnp.zeros((0, 3)),
            "a.b": jnp.float32(rng.normal()),
            "a": {"b": jnp.float32(rng.normal())},
            "../x/y": jnp.asarray(rng.normal(size=3), jnp.float16),
            "nan": jnp.asarray([jnp.nan, -0.0, jnp.inf]),
            "fortran": jnp.asarray(np.asfortranarray(rng.normal(size=(3, 2)))),
        }
        model_state = {
            "key": jax.random.key(seed, impl="rbg"),
            "scalar": np.float64(rng.normal()),
            "array": rng.integers(9, size=(2, 2)),
            "int": int(rng.integers(99)),
            "float": float(rng.normal()),
            "flag": bool(seed % 2),
        }
        return TrainState(jnp.int32(seed), params, model_state, opt_state=())

    found = written(tmp_path, state(1))
    assert bits(restore(found, state(2))) == bits(state(1))
    params = {name: found.arrays[name] for name in found.arrays if name.startswith("params.")}
    alone = read_arrays(found, params)
    assert list(alone) == list(params)
    for leaf, array in zip(jax.tree.leaves(state(1).params), alone.values(), strict=True):
        np.testing.assert_array_equal(array, leaf, strict=True)
    assert found.arrays["params.a\\.b"][0] == "float32[]"
    assert found.arrays["model_state.key"][0] == "key<rbg>[]"


def test_what_json_can_not_hold_is_the_callers_mistake(tmp_path):
    with pytest.raises(TypeError):
        Contents.of(plain_state(), {"step": 5, "path": tmp_path})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: {**params, "w": jnp.zeros((8, 4))}, r"params.w is float32\[8, 3\] there"),
        (lambda params: {**params, "w": jnp.zeros((8, 3), jnp.int32)}, r"int32\[8, 3\] here"),
        (lambda params: {**params, "v": jnp.zeros(1)}, "params.v is absent there"),
        (lambda params: {"w": params["w"]}, "params.b is .* there and absent here"),
    ],
    ids=["shape", "dtype", "more", "fewer"],
)
def test_other_arrays_are_refused(two_saved, change, message):
    state = plain_state()
    state = dataclasses.replace(state, params=change(state.params))
    with pytest.raises(RestoreError, match=message):
        restore(check_checkpoint(two_saved / "7"), state)


def test_another_kind_of_key_is_refused(two_saved):
    state = plain_state()
    state.model_state["keys"] = jax.random.split(jax.random.key(0, impl="rbg"), 4)
    with pytest.raises(RestoreError, match=r"keys is key<fry>\[4\] there and key<rbg>\[4\] here"):
        restore(check_checkpoint(two_saved / "7"), state)


def copied(two_saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)
    return directory


def files_below(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_damage_anywhere_is_noticed(two_saved, tmp_path):
    """Bits flipped and files cut anywhere; the checkpoint before is untouched."""
    directory = copied(two_saved, tmp_path)
    rng = random.Random(0)
    unused = directory / "7/state/0/commit_success.txt"
    files = [file for file in files_below(directory / "7") if file != unused]
    unused.unlink()
    for file in files:
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for damaged in (bytes(flipped), content[: rng.randrange(len(content))], b""):
            file.write_bytes(damaged)
            found, rejected = newest_good(directory)
            assert found.step == 3 and [step for step, _ in rejected] == [7], file
        file.write_bytes(content)
    assert {"manifest", "state"} == {file.relative_to(directory / "7").parts[0] for file in files}
    for step, (found, _) in [(3, (found, None)), (7, newest_good(directory))]:
        assert bits(restore(found, plain_state())) == bits(plain_state(step))


def test_other_values_are_noticed_after_the_files_were_verified(two_saved, tmp_path):
    """Files whose digests fit, with arrays whose digests don't: such as a device's fault."""
    path = copied(two_saved, tmp_path) / "7"
    manifest = read_manifest(path)
    shutil.rmtree(path / "state")
    shutil.copytree(two_saved / "3/state", path / "state")
    write_manifest(path, manifest.run, manifest.arrays)
    with pytest.raises(Damaged, match=r"^\S+ has other values than were saved$"):
        restore(check_checkpoint(path), plain_state())


def test_what_orbax_can_not_read_is_not_damaged_where_its_files_are_right(two_saved, tmp_path):
    path = copied(two_saved, tmp_path) / "7"
    manifest = read_manifest(path)
    (path / "state/0/manifest.ocdbt").unlink()
    write_manifest(path, manifest.run, manifest.arrays)
    with pytest.raises(RestoreError, match=r"^checkpoint 7 in .* though its files are .* saved \("):
        restore(check_checkpoint(path), plain_state())


NAMES = (
    "z\\z", "new\nline", "t\tab", "100%41", "a#?&b", "*[x]", "it's \"so\"", "n" * 200, "~", "ü€",
    "\udcff\udcfe",
)  # fmt: skip


@pytest.mark.parametrize("open_files", ["/proc/self/fd", "/nowhere"])
def test_any_name_of_a_folder_will_do(tmp_path, monkeypatch, open_files):
    monkeypatch.setattr(checkpoint_files, "_OPEN_FILES", tmp_path.__class__(open_files))
    for name in NAMES:
        (tmp_path / name).mkdir()
        found = written(tmp_path / name, plain_state())
        assert bits(restore(found, plain_state(1))) == bits(plain_state())
    assert sorted(names(tmp_path)) == sorted(NAMES)


def test_a_name_may_depend_on_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = written(tmp_path.__class__("."), plain_state())
    assert bits(restore(found, plain_state(1))) == bits(plain_state())


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(errno.EMFILE, "Too many open files"), ValueError("a decoder's")],
    ids=lambda error: type(error).__name__,
)
def test_a_sound_one_that_can_not_be_restored_is_not_damaged(two_saved, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint_files.ocp.Checkpointer, "restore", fail)
    reason = r"checkpoint 7 in .*checkpoints can't be restored here, though its files are what was"
    with pytest.raises(RestoreError, match=reason):
        restore(check_checkpoint(two_saved / "7"), plain_state())


def test_files_that_change_after_they_were_verified_are_damaged(two_saved, tmp_path):
    path = copied(two_saved, tmp_path) / "7"
    found = check_checkpoint(path)
    os.truncate(path / "state/0/manifest.ocdbt", 5)
    with pytest.raises(Damaged, match="manifest.ocdbt has 5 bytes instead of"):
        restore(found, plain_state())


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (RuntimeError("Event loop is closed"), False),
        (RuntimeError("another"), True),
        (ValueError("Event loop is closed"), True),
    ],
)
def test_only_a_closed_event_loop_is_kept_quiet(monkeypatch, error, heard):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    quieten_orbax()
    quieten_orbax()
    unraisable = SimpleNamespace(exc_value=error)
    sys.unraisablehook(unraisable)
    assert said == ([unraisable] if heard else [])
