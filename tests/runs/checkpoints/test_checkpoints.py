"""Saving under way: what is on disk when, what fails how, and what is kept."""

import resource
import shutil
import threading
from contextlib import contextmanager

import jax
import pytest

from adabatch_jax.runs.checkpoints import checkpoint_files, deleting_old
from adabatch_jax.runs.checkpoints.verifying import (
    check_checkpoint,
    committed_steps,
    newest_good,
)
from adabatch_jax.system.errors import StorageError
from adabatch_jax.system.watchdog import Watchdog
from tests.runs.checkpoints.conftest import Said, bits, names, opened, plain_state, restored


@pytest.fixture
def held(monkeypatch):
    """Saves don't end before `held.set()`; they have begun to end when `held.reached` is set."""
    go_on = threading.Event()
    go_on.reached = threading.Event()

    def reach(point):
        if point == "save.mid":
            go_on.reached.set()
            assert go_on.wait(30)

    monkeypatch.setattr(checkpoint_files, "reach", reach)
    return go_on


@contextmanager
def largest_file(num_bytes):
    """Files can't grow beyond this: what a full disk looks like to who writes them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_all_end(threads):
    """None waits for what can't come any more: it would keep the process alive."""
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), thread


def look_until(is_over):
    for _ in range(30_000):
        if is_over():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it takes too long")


def test_a_save_is_seen_when_it_is_whole(tmp_path, held):
    directory, saved = tmp_path / "a/checkpoints", []
    with opened(directory, on_saved=saved.append) as checkpoints:
        checkpoints.check()
        assert checkpoints.latest is None
        checkpoints.save(5, plain_state(), {})
        assert held.reached.wait(30)
        checkpoints.check()
        assert committed_steps(directory) == [] and checkpoints.latest is None
        held.set()
        checkpoints.wait()
        assert committed_steps(directory) == [5] and checkpoints.latest == 5
    assert saved == [5]


def test_check_alone_sees_a_save_through(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(5, plain_state(), {})
        look_until(lambda: checkpoints.check() or checkpoints.latest)
        assert checkpoints.latest == 5 and committed_steps(tmp_path) == [5]


def test_saving_and_deleting_stall_nothing(two_saved, tmp_path, monkeypatch):
    """What hangs, hangs in the thread: `save` and `check` return."""
    directory, go_on = tmp_path / "checkpoints", threading.Event()
    shutil.copytree(two_saved, directory)
    for module in (checkpoint_files, deleting_old):
        monkeypatch.setattr(module, "reach", lambda point: go_on.wait(30))
    with opened(directory, newest=1) as checkpoints:
        checkpoints.save(9, plain_state(), {})
        checkpoints.check()
        assert not go_on.is_set() and committed_steps(directory) == [3, 7]
        go_on.set()
    assert names(directory) == ["9"]


def test_the_state_and_the_run_may_change_after_save(tmp_path, held):
    state, run = plain_state(1), {"seconds": [1, 2]}
    wanted = bits(plain_state(1))  # of another: a view of this one would keep it from donation
    # JAX doesn't reuse the memory of arrays that Orbax still reads: whether they live on is chance.
    with opened(tmp_path) as checkpoints:
        checkpoints.save(5, state, run)
        changed = jax.jit(lambda s: jax.tree.map(_other, s), donate_argnums=0)(state)
        jax.block_until_ready(changed)
        run["seconds"].append(3)
        held.set()
    assert bits(restored(tmp_path, 5)) == wanted
    assert check_checkpoint(tmp_path / "5").run["seconds"] == [1, 2]


def _other(leaf):
    return leaf if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf * 0 + 1


@pytest.mark.parametrize("num_bytes", [0, 100, 350, 1000])
def test_a_full_disk(tmp_path, capfd, num_bytes):
    """It stops another file each time: the first, Orbax's, an array's, the JSON's."""
    state = plain_state(1)
    threads = set(threading.enumerate())
    with opened(tmp_path) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.wait()
        for _ in range(2):  # the second must not stumble over what the first left behind
            with largest_file(num_bytes), pytest.raises(StorageError, match="File too large"):
                checkpoints.save(5, state, {"long": "x" * 2000})
                checkpoints.wait()
            assert checkpoints.latest == 3
            assert committed_steps(tmp_path) == [3]
            assert check_checkpoint(tmp_path / "3")
        checkpoints.save(5, state, {})
    assert names(tmp_path) == ["3", "5"]
    assert bits(restored(tmp_path, 5)) == bits(state)
    assert capfd.readouterr().err == ""
    assert_all_end(set(threading.enumerate()) - threads)


def test_a_folder_that_can_not_be_written(tmp_path, capfd):
    directory = tmp_path / "checkpoints"
    threads = set(threading.enumerate())
    with opened(directory) as checkpoints:
        directory.rmdir()
        directory.write_text("in the way")
        with pytest.raises(StorageError, match="Not a directory"):
            checkpoints.save(5, plain_state(), {})
            checkpoints.wait()
        directory.unlink()
        checkpoints.save(5, plain_state(), {})  # makes it
    assert committed_steps(directory) == [5]
    assert capfd.readouterr().err == ""
    assert_all_end(set(threading.enumerate()) - threads)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"{tmp_path}/file"):
        opened(tmp_path / "file")


def test_an_error_before_the_commit_commits_nothing(tmp_path, monkeypatch):
    def broken(point):
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint_files, "reach", broken)
            checkpoints.save(5, plain_state(), {})
            with pytest.raises(StorageError) as caught:
                look_until(checkpoints.check)
        assert str(caught.value) == (  # golden
            f"a checkpoint in {tmp_path} can't be written: No space left on device."
        )
        assert names(tmp_path) == []
        checkpoints.check()
        checkpoints.save(5, plain_state(), {})
    assert committed_steps(tmp_path) == [5]


def test_what_goes_wrong_last_is_told(tmp_path):
    with pytest.raises(StorageError), largest_file(100):
        with opened(tmp_path) as checkpoints:
            checkpoints.save(5, plain_state(), {"long": "x" * 200})


@pytest.mark.parametrize("stray", ["sound", "damaged", "empty", "file", "link"])
def test_what_has_its_name_is_set_aside(two_saved, tmp_path, stray):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)
    if stray == "damaged":
        (directory / "7/manifest").unlink()
    elif stray != "sound":
        shutil.rmtree(directory / "7")
        make = {
            "empty": lambda path: path.mkdir(),
            "file": lambda path: path.write_text("7"),
            "link": lambda path: path.symlink_to(directory / "3"),
        }
        make[stray](directory / "7")
    with opened(directory, 5) as checkpoints:
        checkpoints.save(7, plain_state(1), {})
    assert names(directory) == ["3", "7", "bad-7"]
    assert bits(restored(directory, 7)) == bits(plain_state(1))
    assert check_checkpoint(directory / "3")


def test_a_higher_step_in_the_folder_hinders_nothing(tmp_path):
    (tmp_path / "99").mkdir()
    with opened(tmp_path, 1) as checkpoints:
        for step in (5, 6):
            checkpoints.save(step, plain_state(), {})
    assert committed_steps(tmp_path) == [6, 99]
    assert newest_good(tmp_path)[0].step == 6


@pytest.mark.parametrize("on_error", ["stop", "warn"])
def test_a_note_that_cannot_be_written_is_as_bad_as_a_checkpoint(tmp_path, on_error):
    def broken(step):
        raise StorageError(f"cannot write note {step}.")

    said = Said()
    with opened(tmp_path, on_error=on_error, on_saved=broken, progress=said) as checkpoints:
        checkpoints.save(3, plain_state(), {})
        if on_error == "stop":
            with pytest.raises(StorageError, match="cannot write note 3"):
                checkpoints.wait()
        else:
            checkpoints.wait()
            (message,) = said.messages
            assert message.startswith("warning: cannot write note 3. ")
        checkpoints.check_is_saved(3)


def test_with_warnings_a_failed_save_is_one_and_no_success(tmp_path):
    said = Said()
    with opened(tmp_path, on_error="warn", progress=said) as checkpoints:
        with largest_file(100):
            checkpoints.save(3, plain_state(), {})
            checkpoints.wait()
        (message,) = said.messages
        assert "File too large" in message
        with pytest.raises(StorageError, match="after update 3,"):
            checkpoints.check_is_saved(3)


def test_the_watchdog_looks_after_a_save_up_to_its_note(tmp_path):
    watchdog, seen = Watchdog(10, None), []

    def overdue(step=None):
        seen.append({watchdog.overdue(1.0) for _ in range(12)} - {None})

    with opened(tmp_path, watchdog=watchdog, on_saved=overdue) as checkpoints:
        checkpoints.save(3, plain_state(), {})
    overdue()
    assert seen == [{"a checkpoint"}, set()]
    assert 0 < checkpoints.save_seconds < 60
