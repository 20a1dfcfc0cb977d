"""Saving under way: what is on disk when, what fails how, and what is kept."""

import resource
import shutil
import threading
from contextlib import contextmanager

import jax
import pytest

from adabatch_jax.runs.checkpoints import checkpoints as checkpoints_module
from adabatch_jax.runs.checkpoints import retention, saving
from adabatch_jax.runs.checkpoints.checkpoints import Checkpoints
from adabatch_jax.runs.checkpoints.found import check_checkpoint, committed_steps, newest_good
from adabatch_jax.system.errors import StorageError
from tests.runs.checkpoints.conftest import bits, plain_state


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def restored(directory, step):
    found, _ = newest_good(directory)
    assert found.step == step
    with Checkpoints(directory, 1) as checkpoints:
        state = checkpoints.restore(found, plain_state())
        assert checkpoints.latest == step
    return state


@pytest.fixture
def held(monkeypatch):
    """Saves don't end before `held.set()`; they have begun to end when `held.reached` is set."""
    go_on = threading.Event()
    go_on.reached = threading.Event()

    def reach(point):
        if point == "save.mid":
            go_on.reached.set()
            assert go_on.wait(30)

    monkeypatch.setattr(saving, "reach", reach)
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


def test_a_save_is_seen_when_it_is_whole(tmp_path, held):
    with Checkpoints(tmp_path / "a/checkpoints", 2) as checkpoints:
        directory = tmp_path / "a/checkpoints"
        assert checkpoints.latest is None and not checkpoints.is_saving and not checkpoints.check()
        checkpoints.save(5, plain_state(), {})
        assert held.reached.wait(30)
        assert checkpoints.is_saving and not checkpoints.check()
        assert committed_steps(directory) == [] and checkpoints.latest is None
        held.set()
        checkpoints.wait()
        assert committed_steps(directory) == [5] and checkpoints.latest == 5
        assert not checkpoints.is_saving
        assert checkpoints.check() and not checkpoints.check()


def test_check_alone_sees_a_save_through(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(5, plain_state(), {})
        deadline = threading.Event()
        for _ in range(30_000):
            if checkpoints.check():
                break
            deadline.wait(0.001)
        assert checkpoints.latest == 5 and committed_steps(tmp_path) == [5]


def test_the_state_and_the_run_may_change_after_save(tmp_path, held):
    state, run = plain_state(1), {"seconds": [1, 2]}
    wanted = bits(plain_state(1))  # of another: a view of this one would keep it from donation
    # JAX doesn't reuse the memory of arrays that Orbax still reads: whether they live on is chance.
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(5, state, run)
        changed = jax.jit(lambda s: jax.tree.map(_other, s), donate_argnums=0)(state)
        jax.block_until_ready(changed)
        run["seconds"].append(3)
        held.set()
    assert bits(restored(tmp_path, 5)) == wanted
    assert check_checkpoint(tmp_path / "5").run["seconds"] == [1, 2]


def _other(leaf):
    return leaf if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf * 0 + 1


def test_what_json_can_not_hold_is_the_callers_mistake(tmp_path):
    with Checkpoints(tmp_path, 2) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(5, plain_state(), {"path": tmp_path})
        assert not checkpoints.is_saving


@pytest.mark.parametrize("num_bytes", [0, 100, 350, 1000])
def test_a_full_disk(tmp_path, capfd, num_bytes):
    """It stops another file each time: the first, Orbax's, an array's, the JSON's."""
    state = plain_state(1)
    threads = set(threading.enumerate())
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.wait()
        for _ in range(2):  # the second must not stumble over what the first left behind
            with largest_file(num_bytes), pytest.raises(StorageError, match="File too large"):
                checkpoints.save(5, state, {"long": "x" * 2000})
                checkpoints.wait()
            assert not checkpoints.is_saving and checkpoints.latest == 3
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
    with Checkpoints(directory, 2) as checkpoints:
        directory.rmdir()
        directory.write_text("in the way")
        with pytest.raises(StorageError, match="can't be written: Not a directory"):
            checkpoints.save(5, plain_state(), {})
            checkpoints.wait()
        directory.unlink()
        checkpoints.save(5, plain_state(), {})  # makes it
    assert committed_steps(directory) == [5]
    assert capfd.readouterr().err == ""
    assert_all_end(set(threading.enumerate()) - threads)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write .*file"):
        Checkpoints(tmp_path / "file", 2)


def test_an_error_before_the_commit_commits_nothing(tmp_path, monkeypatch):
    def broken(point):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path, 2) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(saving, "reach", broken)
            checkpoints.save(5, plain_state(), {})
            with pytest.raises(StorageError, match="written: No space left on device.$"):
                for _ in range(30_000):
                    assert not checkpoints.check()
                    threading.Event().wait(0.001)
        assert names(tmp_path) == [] and not checkpoints.check()
        checkpoints.save(5, plain_state(), {})
    assert committed_steps(tmp_path) == [5]


def test_what_went_wrong_first_is_told(tmp_path):
    with pytest.raises(KeyError, match="first"), largest_file(100):
        with Checkpoints(tmp_path, 2) as checkpoints:
            checkpoints.save(5, plain_state(), {"long": "x" * 200})
            raise KeyError("first")
    with pytest.raises(StorageError), largest_file(100):
        with Checkpoints(tmp_path, 2) as checkpoints:
            checkpoints.save(5, plain_state(), {"long": "x" * 200})


@pytest.mark.parametrize("stray", ["sound", "damaged", "empty", "file", "link"])
def test_what_has_its_name_is_set_aside(two_saved, tmp_path, stray):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)
    if stray == "damaged":
        (directory / "7/run/metadata").unlink()
    elif stray != "sound":
        shutil.rmtree(directory / "7")
        make = {
            "empty": lambda path: path.mkdir(),
            "file": lambda path: path.write_text("7"),
            "link": lambda path: path.symlink_to(directory / "3"),
        }
        make[stray](directory / "7")
    with Checkpoints(directory, 5) as checkpoints:
        checkpoints.save(7, plain_state(1), {})
    assert names(directory) == ["3", "7", "bad-7"]
    assert bits(restored(directory, 7)) == bits(plain_state(1))
    assert check_checkpoint(directory / "3")


def test_a_higher_step_in_the_folder_hinders_nothing(tmp_path):
    (tmp_path / "99").mkdir()
    with Checkpoints(tmp_path, 1) as checkpoints:
        for step in (5, 6):
            checkpoints.save(step, plain_state(), {})
    assert committed_steps(tmp_path) == [6, 99]
    assert newest_good(tmp_path)[0].step == 6


def test_the_newest_the_best_and_the_marked_stay(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: float("nan"), 4: None, 5: 0.2, 6: 0.1}
    with Checkpoints(tmp_path, 2) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, plain_state(), {"score": score, "keep": step == 3})
            checkpoints.wait()
            if step == 4:
                assert committed_steps(tmp_path) == [2, 3, 4]
    assert committed_steps(tmp_path) == [2, 3, 5, 6]
    with Checkpoints(tmp_path, 2) as checkpoints:  # the scores are on disk
        (tmp_path / "5/digests/manifest").unlink()  # counts no more, and isn't ours to delete
        checkpoints.save(7, plain_state(), {"score": 1.0})
    assert committed_steps(tmp_path) == [3, 5, 6, 7]
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.scores = {6: 2.0}  # was measured after it had been saved
        for step in (8, 9):
            checkpoints.save(step, plain_state(), {"score": 1.5})
    assert committed_steps(tmp_path) == [3, 5, 6, 9]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("point", ["gc.before", "gc.mid", "save.committed"])
def test_a_kill_while_old_ones_are_removed(two_saved, tmp_path, monkeypatch, point):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)

    def killed(reached):
        if reached == point:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        for module in (retention, checkpoints_module):
            patched.setattr(module, "reach", killed)
        with Checkpoints(directory, 1) as checkpoints:
            checkpoints.save(9, plain_state(9), {})
    for step in committed_steps(directory):
        assert check_checkpoint(directory / str(step))
    assert bits(restored(directory, 9)) == bits(plain_state(9))
    with Checkpoints(directory, 1) as checkpoints:
        assert not [name for name in names(directory) if name.startswith(".")]
        checkpoints.save(10, plain_state(10), {})
    assert names(directory) == ["10"]


def test_what_a_kill_left_of_a_save_goes(two_saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)
    for name in ("8.orbax-checkpoint-tmp-0", "9.orbax-checkpoint-tmp"):
        shutil.copytree(two_saved / "7", directory / name)
    assert newest_good(directory)[0].step == 7
    with Checkpoints(directory, 2):
        assert names(directory) == ["3", "7"]
