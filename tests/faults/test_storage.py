"""Disks that are full or can't be written: said at the save, never exit 0, older ones intact."""

import contextlib
import subprocess

import pytest

from tests.faults.harness import (
    NO_ARRAYS,
    assert_rows_follow,
    assert_same,
    finish,
    limit_file_size,
    wait_for_training,
)

pytestmark = pytest.mark.faults

# All rows, if there are fewer than usual, take less than `NO_ARRAYS`.
FEW_ROWS = "--log-every 6st"


@contextlib.contextmanager
def mounted(*arguments):
    """Mounts something; skips the test where that isn't allowed."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount isn't allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(arguments[-1])], check=True)


@pytest.fixture(autouse=True)
def apart(own_cache, monkeypatch):
    for name, value in own_cache.items():
        monkeypatch.setenv(name, value)


def assert_one_sentence(outcome):
    (said,) = outcome.err.splitlines()
    assert said.startswith("error: ") and said.endswith(".")


@pytest.mark.parametrize(
    ("num_bytes", "further"),
    [(NO_ARRAYS, FEW_ROWS), (3_000, ""), (8_000, "--checkpoint-every 100ep")],
    ids=["arrays", "everything", "a line of metrics"],
)
@pytest.mark.parametrize("setting", ["carry", "two_streams"])
def test_full_in_the_middle(oracle, begin, setting, num_bytes, further):
    whole, run = oracle(setting, further), begin(setting, further)
    run.go("step.end:16:sigterm", code=143)
    before = run.newest()
    process = run.start("step.begin:9:sleep:3")
    wait_for_training(run, process)
    limit_file_size(process, num_bytes)
    outcome = run.ended(process, before, 5, "File too large")
    assert_one_sentence(outcome)
    assert_rows_follow(run, whole)
    run.go()
    assert_same(run, whole)


def test_full_at_the_last_save_alone(oracle, begin):
    further = f"--checkpoint-every 100ep {FEW_ROWS}"
    run = begin("carry", further)
    process = run.start("step.begin:20:sleep:3")
    wait_for_training(run, process)
    limit_file_size(process, NO_ARRAYS)
    outcome = run.ended(process, None, 5, "File too large")
    assert_one_sentence(outcome)
    assert run.steps() == [] and not (run.workdir / "summary.json").exists()
    run.go()
    assert_same(run, oracle("carry", further))


def test_full_for_a_while_with_warnings(oracle, begin):
    run = begin("carry", FEW_ROWS)
    process = run.start("step.begin:12:sleep:3,step.begin:40:sleep:3", "--on-save-error warn")
    wait_for_training(run, process)
    limit_file_size(process, NO_ARRAYS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=4.5)  # it sleeps for the second time
    limit_file_size(process, -1)
    outcome = run.ended(process, None, 0)
    assert "File too large" in outcome.out + outcome.err
    assert_same(run, oracle("carry", FEW_ROWS))


def test_full_to_the_end_in_spite_of_warnings(oracle, begin):
    run = begin("carry", FEW_ROWS)
    run.go("step.end:16:sigterm", code=143)
    process = run.start("step.begin:9:sleep:3", "--on-save-error warn")
    wait_for_training(run, process)
    limit_file_size(process, NO_ARRAYS)
    run.ended(process, 16, 5, "File too large")
    assert run.newest() == 16 and not (run.workdir / "summary.json").exists()
    run.go()
    assert_same(run, oracle("carry", FEW_ROWS))


def test_a_disk_that_is_really_full(oracle, begin):
    whole, run = oracle("carry"), begin("carry")
    run.workdir.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=8m", "none", run.workdir):
        run.go("step.end:16:sigterm", code=143)
        process = run.start("step.begin:9:sleep:3")
        wait_for_training(run, process)
        ballast = run.workdir / "checkpoints" / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        outcome = run.ended(process, 16, 5)
        assert_one_sentence(outcome)
        # Found while writing, or by looking at what is free before.
        assert "No space left on device" in outcome.err or "make room" in outcome.err
        ballast.unlink()
        run.go()
        assert_same(run, whole)


def test_a_disk_that_is_too_small(begin):
    run = begin("carry")
    run.workdir.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=64k", "none", run.workdir):
        assert_one_sentence(run.go(code=5))


def test_a_folder_that_became_read_only(oracle, begin):
    run = begin("carry")
    run.go("step.end:16:sigterm", code=143)
    folder = run.workdir / "checkpoints"
    with mounted("--bind", folder, folder):
        process = run.start("step.begin:9:sleep:3")
        wait_for_training(run, process)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        outcome = run.ended(process, 16, 5, "Read-only file system")
        assert_one_sentence(outcome)
    run.go()
    assert_same(run, oracle("carry"))


def test_a_folder_that_is_read_only_from_the_start(begin):
    run = begin("carry")
    run.go("step.end:16:sigterm", code=143)
    with mounted("--bind", run.workdir, run.workdir):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run.workdir)], check=True)
        outcome = run.go(code=2)
        assert_one_sentence(outcome)


def test_a_folder_of_checkpoints_that_becomes_a_file(oracle, begin):
    run = begin("carry")
    run.go("step.end:16:sigterm", code=143)
    process = run.start("step.begin:9:sleep:3")
    wait_for_training(run, process)
    folder = run.workdir / "checkpoints"
    away = folder.rename(run.workdir.with_name("away"))
    folder.write_text("")
    outcome = finish(process)
    assert outcome.code == 5
    assert_one_sentence(outcome)
    folder.unlink()
    away.rename(folder)
    run.go(sound=16)
    assert_same(run, oracle("carry"))


def test_a_folder_of_checkpoints_that_is_taken_away_is_made_again(oracle, begin):
    run = begin("carry")
    run.go("step.end:16:sigterm", code=143)
    process = run.start("step.begin:9:sleep:3")
    wait_for_training(run, process)
    (run.workdir / "checkpoints").rename(run.workdir.with_name("away"))
    run.ended(process, 16, 0)
    assert_same(run, oracle("carry"))
