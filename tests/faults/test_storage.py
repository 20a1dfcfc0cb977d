"""Disks that are full or can't be written: said at the save, never exit 0, older ones intact."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys

import pytest

from tests.faults.harness import (
    NO_ARRAYS,
    Run,
    assert_rows_follow,
    assert_same,
    finish,
    limit_file_size,
    start,
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


NAMES = (
    'z\\z *[x]\nnew line\t100%41 a#?&b it\'s "so" $(id)` ~',
    "--x <b>&amp; \x1b[2J" + 180 * "n",
    "\udcff\udcfe ü€",
)
WITHOUT_UNICODE = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("locale", [{}, WITHOUT_UNICODE], ids=["utf-8", "posix"])
@pytest.mark.parametrize("name", NAMES, ids=["shell", "long", "bytes"])
def test_any_name_of_a_folder_will_do(oracle, begin, name, locale):
    run = begin("carry")
    run.workdir = run.workdir.with_name(name)
    run.go("save.committed:3:kill9", code=-9, **locale)
    assert run.newest() == 21 and {*os.listdir(run.workdir.parent)} == {"cache", name}
    outcome = run.go(run.at("step.end", 30, "sigterm"), code=143, **locale)
    # The line that says how to go on is taken by a shell as it is.
    line = outcome.out[outcome.out.rindex("python -m ") :].replace("python", sys.executable, 1)
    assert outcome.resumed_after == 21 and len(line.splitlines()) == 1
    done = subprocess.run(["bash", "-c", line], env=os.environ | locale, capture_output=True)
    assert done.returncode == 0, done
    assert_same(run, oracle("carry"))
    for program in ("doctor", "report"):
        outcome = finish(start(program, "--", str(run.workdir), **locale))
        assert outcome.code == 0 and outcome.err == "", outcome


def test_a_link_to_the_folder_will_do(oracle, begin):
    run = begin("carry")
    (run.workdir.parent / "on another disk").mkdir()
    run.workdir.symlink_to("on another disk")
    run.go("save.committed:3:kill9", code=-9)
    run.go()
    assert_same(run, oracle("carry"))


@pytest.mark.parametrize("part", [".", "manifest", "state", "state/0/d", "state/0/manifest.ocdbt"])
def test_what_this_user_may_not_read_is_not_damaged(oracle, begin, part):
    run = begin("carry")
    run.go("step.end:30:sigterm", code=143)
    path = run.checkpoint() / part
    mode = path.stat().st_mode
    path.chmod(0)
    # Root reads everything, unless it has lost the right.
    without_rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    asked = [*without_rights, "test", "!", "-r", str(path)]
    if shutil.which("setpriv") is None or subprocess.run(asked, capture_output=True).returncode:
        pytest.skip("there is no way here to be another user")
    for program, words in (
        ("train", [*run.arguments.split(), "--workdir"]), ("doctor", []),
    ):  # fmt: skip
        before = sorted(os.walk(run.workdir))
        command = [sys.executable, "-m", f"adabatch_jax.{program}", *words, str(run.workdir)]
        done = subprocess.run([*without_rights, *command], capture_output=True, text=True)
        assert done.returncode == 5 and "Traceback" not in done.stderr, done
        assert f"cannot read {path}" in done.stdout + done.stderr, done
        assert sorted(os.walk(run.workdir)) == before
    path.chmod(mode)
    assert run.go().resumed_after == 30
    assert_same(run, oracle("carry"))


def limit_descriptors(process, number):
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (number, hard))


@pytest.mark.parametrize(("number", "code"), [(8, 4), (16, 5)])
def test_too_few_descriptors_from_the_start(oracle, begin, number, code):
    """Too few for a checkpoint, or to read one."""
    run = begin("carry")
    run.go("step.end:30:sigterm", code=143)
    steps = run.steps()
    command = [sys.executable, "-m", "adabatch_jax.train", *run.arguments.split(), "--workdir"]
    limited = ["prlimit", f"--nofile={number}", *command, str(run.workdir)]
    done = subprocess.run(limited, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == code and said.startswith("error: "), done
    assert "Too many open files" in said and "Traceback" not in done.stderr, done
    assert [step for step in run.steps() if step <= 30] == steps
    run.go()
    assert_same(run, oracle("carry"))


def test_too_few_descriptors_in_the_middle(oracle, begin):
    run = begin("carry")
    run.go("step.end:16:sigterm", code=143)
    process = run.start("step.begin:9:sleep:3")
    wait_for_training(run, process)
    limit_descriptors(process, 12)
    outcome = run.ended(process, 16, 5, "Too many open files")
    assert_one_sentence(outcome)
    run.go()
    assert_same(run, oracle("carry"))


def test_a_disk_that_goes_away(oracle, begin):
    run = begin("carry")
    run.go("step.end:16:sigterm", code=143)
    disk = run.workdir.with_name("disk")
    disk.mkdir()
    with mounted("-t", "tmpfs", "none", disk):
        shutil.copytree(run.workdir, disk, dirs_exist_ok=True)
        there = Run(disk, run.arguments)
        process = there.start("step.begin:9:sleep:3")
        wait_for_training(there, process)
        subprocess.run(["umount", "-l", str(disk)], check=True)
        outcome = finish(process)
        assert outcome.code == 5 and not any(disk.iterdir()), outcome
        assert_one_sentence(outcome)
        subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], check=True)
    run.go()
    assert_same(run, oracle("carry"))
