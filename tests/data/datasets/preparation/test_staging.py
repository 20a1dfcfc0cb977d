"""Prepared data is there whole or not at all, whatever happens in between."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from adabatch_jax.data.datasets.preparation import prepare
from adabatch_jax.data.datasets.preparation.staging import staging_folder
from adabatch_jax.data.datasets.prepared_folders import is_prepared
from adabatch_jax.data.sources import in_memory
from adabatch_jax.data.tfds_images import tfds_source
from adabatch_jax.system.errors import StorageError, UsageError


def test_prepared_data_is_left_alone(digits_dir):
    def files():
        return {path: path.stat().st_mtime_ns for path in digits_dir.rglob("*")}

    before = files()
    assert prepare("digits", digits_dir) == digits_dir / "digits" / "1.0.0"
    assert files() == before


def test_overwrite_replaces_damaged_data(tmp_path):
    path = prepare("digits", tmp_path)
    for file in path.glob("*.array_record*"):
        file.write_bytes(b"")
    assert prepare("digits", tmp_path) == path
    assert prepare("digits", tmp_path, overwrite=True) == path
    assert len(in_memory(tfds_source("digits", "train", tmp_path))) == 1442
    assert list((tmp_path / ".preparing").iterdir()) == []


@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_files_follow_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        prepare("digits", tmp_path / "data")
    finally:
        os.umask(before)
    for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_kill_leaves_nothing_that_looks_prepared(tmp_path):
    code = (
        "import os, sys; from adabatch_jax.data.datasets.preparation import prepare;"
        "prepare('digits', sys.argv[1],"
        " progress=lambda progress: progress.done and os.kill(os.getpid(), 9))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert not is_prepared("digits", tmp_path)
    (left,) = (tmp_path / ".preparing").iterdir()
    os.utime(left, (time.time() - 3600,) * 2)
    prepare("digits", tmp_path)
    assert list((tmp_path / ".preparing").iterdir()) == []


def test_a_folder_in_use_is_not_cleaned_away(tmp_path):
    with staging_folder(tmp_path) as mine:
        os.utime(mine, (time.time() - 3600,) * 2)
        with staging_folder(tmp_path) as other:
            assert mine.is_dir() and other != mine
        assert mine.is_dir()
        with open(mine / "in-use") as lock, pytest.raises(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not mine.exists()


def test_two_processes_may_prepare_at_once(tmp_path):
    command = [sys.executable, "-m", "adabatch_jax.prepare", "digits", "--data-dir", str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "ab"]
    assert [process.communicate() and process.returncode for process in both] == [0, 0]
    assert len(in_memory(tfds_source("digits", "train", tmp_path))) == 1442
    assert list((tmp_path / ".preparing").iterdir()) == []


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=f"'digits' .*{tmp_path / 'file'}.*Not a directory"):
        prepare("digits", tmp_path / "file")


def test_a_version_that_cannot_be_prepared(tmp_path):
    with pytest.raises(UsageError, match="1.0.0 .*'cifar10' .*3.0.2"):
        prepare("cifar10:1.0.0", tmp_path)


def test_progress_may_print(tmp_path, capsys):
    prepare("digits", tmp_path, progress=lambda progress: print(progress.stage))
    out, err = capsys.readouterr()
    assert (set(out.split("\n")), err) == ({"Writing train", "Writing test", ""}, "")
