"""Checkpoints are found and verified without JAX; anything changed is noticed."""

import builtins
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from adabatch_jax.runs.checkpoints.manifest import MANIFEST, Part, SavedArray, write_manifest
from adabatch_jax.runs.checkpoints.verifying import (
    Damaged,
    check_checkpoint,
    committed_steps,
    leftovers,
    newest_good,
    other_checkpoints,
    read_run,
    set_aside,
)
from adabatch_jax.system.errors import StorageError

ARRAYS = {
    "params.w": SavedArray(
        "float32[2]", {"0:1": Part("ab" * 32, "state"), "1:2": Part("", "state")}
    ),
    "step": SavedArray("int32[]", {"": Part("cd" * 32, "state")}),
}


def write_checkpoint(directory, step, named=None, **run):
    """A checkpoint as it looks when Orbax is done, with other bytes in it."""
    path = directory / str(step if named is None else named)
    for name, content in {
        "state/_METADATA": b'{"tree": {}}',
        "state/manifest.ocdbt": b"\x0c\xdb:*",
        "state/d/0a1b": bytes(range(200)),
        "state/empty": b"",
        "state/commit_success.txt": b"it was",
        "beside": b"is never read",
    }.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    write_manifest(path, {"step": step, **run}, ARRAYS)
    return path


def files(path):
    return sorted(name for name in path.rglob("*") if name.is_file())


def matters(path):
    """Whether a file of a checkpoint is ever read."""
    return path.name not in ("commit_success.txt", "beside")


def reason(path):
    """Why a checkpoint is rejected: one clause; None where it is good."""
    try:
        check_checkpoint(path)
    except Damaged as error:
        said = str(error)
        assert said and "\n" not in said and str(path) not in said and len(said) < 100
        return said
    return None


def test_what_was_saved_is_found(tmp_path):
    path = write_checkpoint(tmp_path, 30, samples=960)
    found = check_checkpoint(path)
    assert (found.step, found.path, found.arrays) == (30, path, ARRAYS)
    assert found.run == read_run(path) == {"step": 30, "samples": 960}


def test_every_flipped_bit_is_noticed(tmp_path):
    path = write_checkpoint(tmp_path, 30)
    for file in files(path):
        content = file.read_bytes()
        for bit in range(0, 8 * len(content), 31):  # in turn every bit of a byte
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            assert (reason(path) is not None) == matters(file), (file, bit)
        file.write_bytes(content)
    assert reason(path) is None


def truncated(file):
    os.truncate(file, file.stat().st_size - 1)


def emptied(file):
    os.truncate(file, 0)


def extended(file):
    with open(file, "ab") as opened:
        opened.write(b" ")


def renamed(file):
    file.rename(file.with_name("renamed"))


def linked(file):
    """To the same content elsewhere."""
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def made_a_folder(file):
    file.unlink()
    file.mkdir()


def made_a_pipe(file):
    """Which would block who opens it."""
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "damage",
    [truncated, emptied, extended, os.unlink, renamed, linked, made_a_folder, made_a_pipe],
)
def test_damaged_files_are_noticed(tmp_path, damage):
    sound = write_checkpoint(tmp_path / "sound", 30)
    for file in files(sound):
        if not file.stat().st_size and damage in (truncated, emptied):
            continue
        path = tmp_path / "30"
        shutil.copytree(sound, path)
        victim = path / file.relative_to(sound)
        damage(victim)
        stray = damage is renamed and victim.parent.name == "state"
        assert (reason(path) is not None) == (matters(file) or stray), file
        shutil.rmtree(path)


@pytest.mark.parametrize("folder", ["state", "state/d"])
def test_missing_folders_are_noticed(tmp_path, folder):
    path = write_checkpoint(tmp_path, 30)
    shutil.rmtree(path / folder)
    assert reason(path).endswith("is missing")


@pytest.mark.parametrize(
    ("stray", "good"),
    [
        ("state/d/ffff", False),
        ("state/sub/file", False),
        ("notes.txt", True),  # never read
        ("notes/state", True),
        (".DS_Store", True),
    ],
)
def test_strays_inside_what_is_read(tmp_path, stray, good):
    path = write_checkpoint(tmp_path, 30)
    (path / stray).parent.mkdir(exist_ok=True)
    (path / stray).write_text("stray")
    assert reason(path) == (None if good else f"{stray} doesn't belong to it")


def _signed(path, text):
    (path / MANIFEST).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"run": {}, "files": {"a": 3}, "arrays": {}}', b"[" * 100_000, b"\xff"]
    + [b'{"run": {"step": 30}, "files": 3, "arrays": {}}', b'{"files": {}, "arrays": {}}']
    + [b'{"run": {"step": 30}, "files": {}, "arrays": {"a": "ab"}}'],
)
def test_a_manifest_that_fits_its_digest_need_not_be_one(tmp_path, text):
    path = write_checkpoint(tmp_path, 30)
    _signed(path, text)
    assert reason(path)


def test_a_manifest_reaches_no_other_files(tmp_path):
    path = write_checkpoint(tmp_path, 30)
    body = json.loads((path / MANIFEST).read_bytes().partition(b"\n")[2])
    body["files"]["../../../../etc/passwd"] = [10, "ab" * 32]
    _signed(path, json.dumps(body).encode())
    assert reason(path) == "../../../../etc/passwd is missing"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.mkdir(), "manifest is missing"),
        (lambda path: (path / "junk").mkdir(parents=True), "manifest is missing"),
        (lambda path: path.write_text("a file"), "it is no folder"),
        (lambda path: (path / "digests" / "manifest").mkdir(parents=True), "another version"),
    ],
    ids=["empty", "junk", "file", "old"],
)
def test_foreign_things_with_a_steps_name(tmp_path, make, why):
    make(tmp_path / "99")
    assert why in reason(tmp_path / "99")


def test_a_renamed_checkpoint_is_noticed(tmp_path):
    assert reason(write_checkpoint(tmp_path, 30, named=40)) == "it was saved as step 30, not 40"
    assert reason(write_checkpoint(tmp_path, "30", named=30)) == "manifest names no step"
    assert reason(write_checkpoint(tmp_path, True, named=1)) == "manifest names no step"


def test_what_is_named_by_a_step_is_listed(tmp_path):
    for name in ("0", "7", "100", "20", "0035", "-5", "٣", "31 (copy)", "step_70", "bad-8"):
        (tmp_path / name).mkdir()
    (tmp_path / "40.orbax-checkpoint-tmp").mkdir()
    (tmp_path / ("9" * 200)).mkdir()
    (tmp_path / "50").write_text("a file")
    (tmp_path / "60").symlink_to(tmp_path / "7")
    assert committed_steps(tmp_path) == [0, 7, 20, 50, 60, 100, int("9" * 200)]
    assert committed_steps(tmp_path / "absent") == []
    with pytest.raises(StorageError, match="cannot read .*50: Not a directory"):
        committed_steps(tmp_path / "50")


def test_the_newest_good_one_is_used(tmp_path):
    for step in (5, 20, 30, 100):
        write_checkpoint(tmp_path, step, samples=step)
    (tmp_path / "200").mkdir()
    (tmp_path / "100/state/_METADATA").unlink()
    found, rejected = newest_good(tmp_path)
    assert found.step == 30
    assert rejected == [(200, "manifest is missing"), (100, "state/_METADATA is missing")]
    found, rejected = newest_good(tmp_path, lambda f: "too new" if f.run["samples"] > 10 else None)
    assert found.step == 5
    assert rejected[2:] == [(30, "too new"), (20, "too new")]
    (tmp_path / "300").symlink_to(tmp_path / "20")
    (tmp_path / "400").write_text("a file")
    assert newest_good(tmp_path)[1][:2] == [(400, "it is no folder"), (300, "it is no folder")]
    found, rejected = newest_good(tmp_path, lambda found: "never")
    assert found is None and [step for step, _ in rejected[2:]] == [200, 100, 30, 20, 5]
    assert newest_good(tmp_path / "absent") == (None, [])


def test_bad_ones_are_set_aside_and_remembered(tmp_path):
    write_checkpoint(tmp_path, 30)
    assert other_checkpoints(tmp_path) == []
    for name in ("bad-30", "bad-30-2"):
        assert set_aside(tmp_path, 30) == tmp_path / name
        write_checkpoint(tmp_path, 30)
    (tmp_path / "notes").mkdir()
    for name in ("40.orbax-checkpoint-tmp-0", ".removing-20"):  # of a kill
        shutil.copytree(tmp_path / "30", tmp_path / name)
    (tmp_path / "30").rename(tmp_path / "30 (copy)")
    assert other_checkpoints(tmp_path) == ["30 (copy)", "bad-30", "bad-30-2"]
    assert leftovers(tmp_path) == [".removing-20", "40.orbax-checkpoint-tmp-0"]
    assert committed_steps(tmp_path) == []
    with pytest.raises(StorageError, match="cannot rename"):
        set_aside(tmp_path, 30)


ERRORS = ("EACCES", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ENAMETOOLONG", "EPERM")


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("part", ["", "manifest", "state", "state/d", "state/manifest.ocdbt"])
def test_what_can_not_be_read_is_not_damaged(tmp_path, monkeypatch, name, part):
    """Whatever call it is that the system refuses."""
    write_checkpoint(tmp_path, 20)
    path = write_checkpoint(tmp_path, 30)
    number = getattr(errno, name)

    def refusing(function):
        def call(file, *args, **kwargs):
            if str(file) == str(path / part):
                raise OSError(number, os.strerror(number), str(file))
            return function(file, *args, **kwargs)

        return call

    calls = [(os, "lstat"), (os, "stat"), (os, "listdir"), (builtins, "open")]
    for module, function in calls[2:] if part == "state/d" else calls:
        with monkeypatch.context() as patch:
            patch.setattr(module, function, refusing(getattr(module, function)))
            try:
                assert newest_good(tmp_path)[0].step == 30  # it isn't called for this
            except StorageError as error:
                assert str(error) == f"cannot read {path / part}: {os.strerror(number)}."
                refused = True
    assert refused


def test_what_is_gone_as_a_whole_is_not_damaged(tmp_path):
    with pytest.raises(StorageError, match="cannot read .*30: No such file"):
        check_checkpoint(tmp_path / "30")


def test_neither_jax_nor_orbax_is_needed():
    code = "import adabatch_jax.runs.checkpoints.verifying, sys; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
