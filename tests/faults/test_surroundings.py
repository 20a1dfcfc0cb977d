"""What the machine does meanwhile: memory, clocks, rights, copies; and other programs than ours."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from tests.faults.harness import (
    ROOT,
    Run,
    assert_same,
    content,
    finish,
    killed_by,
    start,
    wait_for_training,
)

pytestmark = pytest.mark.faults

DAY = 86_400


def prepare(folder, *further):
    return start("prepare", "digits", "--data-dir", str(folder), *further)


def prepared(folder):
    """What is there of the files; one of them has the others' times in it, which differ."""
    there = content(folder / "digits")
    return {name: digest for name, digest in there.items() if not name.endswith("digests.json")}


def test_killed_while_a_dataset_is_prepared(tmp_path):
    assert finish(prepare(tmp_path / "whole")).code == 0
    whole, folder = prepared(tmp_path / "whole"), tmp_path / "data"
    rng = random.Random(11)
    for number in range(12):
        further = ["--overwrite"] if number > 6 else []
        if further:
            assert prepared(folder) == whole
        process = prepare(folder, *further)
        time.sleep(rng.uniform(0.3, 3))
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        finish(process)
        if (folder / "digits" / "1.0.0").exists():  # all of it or nothing
            assert prepared(folder) == whole
        if number == 6:
            assert finish(prepare(folder)).code == 0
    for left in (folder / ".preparing").iterdir():
        os.utime(left, (0, 0))  # long ago
    assert finish(prepare(folder, "--overwrite")).code == 0
    assert prepared(folder) == whole and not list((folder / ".preparing").iterdir())


def test_prepared_by_several_at_once(tmp_path):
    assert finish(prepare(tmp_path / "whole")).code == 0
    for process in [prepare(tmp_path / "data") for _ in range(3)]:
        assert finish(process).code == 0
    assert prepared(tmp_path / "data") == prepared(tmp_path / "whole")


@pytest.mark.parametrize("room", [0, 2, 8, 20, 60, 150])
def test_memory_that_runs_out(oracle, begin, room):
    """Libraries may abort or hang then; where Python gets to say it, it is one sentence."""
    run = begin("carry")
    process = run.start("step.begin:16:sleep:3", "--stall-timeout 60s")
    wait_for_training(run, process)
    with open(f"/proc/{process.pid}/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + room * 2**20
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    outcome = finish(process)
    by_libraries = killed_by(signal.SIGABRT), killed_by(signal.SIGSEGV)
    assert outcome.code in (0, 1, 5, 42, *by_libraries), outcome
    if outcome.code in (1, 5):
        assert "Traceback" not in outcome.err, outcome.err
        assert outcome.err.splitlines()[-1].startswith("error: "), outcome.err
    assert (run.workdir / "summary.json").exists() == (outcome.code == 0)
    run.go()
    assert_same(run, oracle("carry"))


@pytest.fixture(scope="session")
def other_clock(tmp_path_factory):
    """`other_clock(file)`: variables for a process whose wall clock is off by the file's seconds."""
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(
        textwrap.dedent(
            """
            #define _GNU_SOURCE
            #include <stdio.h>
            #include <stdlib.h>
            #include <sys/syscall.h>
            #include <sys/time.h>
            #include <time.h>
            #include <unistd.h>
            static __thread int inside;
            static long off(void) {
              long seconds = 0;
              if (inside) return 0;
              inside = 1;
              FILE *file = fopen(getenv("CLOCK_FILE"), "r");
              if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
              inside = 0;
              return seconds;
            }
            int clock_gettime(clockid_t id, struct timespec *at) {
              int code = syscall(SYS_clock_gettime, id, at);
              if (id == CLOCK_REALTIME) at->tv_sec += off();
              return code;
            }
            int gettimeofday(struct timeval *at, void *zone) {
              int code = syscall(SYS_gettimeofday, at, zone);
              at->tv_sec += off();
              return code;
            }
            time_t time(time_t *at) {
              struct timespec now;
              clock_gettime(CLOCK_REALTIME, &now);
              if (at) *at = now.tv_sec;
              return now.tv_sec;
            }
            """
        )
    )
    library = folder / "clock.so"
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build a clock that is wrong with")
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "clock.c")]
    subprocess.run(command, check=True, capture_output=True)
    return lambda file: {"LD_PRELOAD": str(library), "CLOCK_FILE": str(file)}


@pytest.mark.parametrize("days", [-400, 400, -20_000, 27_000])
def test_a_clock_that_is_set(oracle, begin, tmp_path, other_clock, days):
    run, clock = begin("carry"), tmp_path / "seconds"
    clock.write_text("0")
    limits = "--stall-timeout 30s --max-time 10m"
    process = run.start("step.begin:16:sleep:2,step.end:60:kill9", limits, **other_clock(clock))
    wait_for_training(run, process)
    clock.write_text(str(days * DAY))
    run.ended(process, None, killed_by(signal.SIGKILL))
    run.go("step.end:30:kill9", code=killed_by(signal.SIGKILL), further=limits)
    before, holder = run.newest(), run.start("step.begin:5:sleep:6", limits)
    wait_for_training(run, holder)
    outcome = finish(run.start(**other_clock(clock)))
    assert outcome.code == 2 and f"process {holder.pid} on " in outcome.err, outcome
    run.ended(holder, before, 0)
    assert_same(run, oracle("carry"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tool", ["cp -r", "rsync -a"])
def test_a_copy_of_a_live_folder_and_both_go_on(oracle, begin, tool, seed):
    if shutil.which(tool.split()[0]) is None:
        pytest.skip(f"{tool.split()[0]} isn't installed")
    run = begin("carry")
    copy = Run(run.workdir.with_name("copy"), run.arguments)
    process = run.start("step.begin:15:sleep:0.5,step.begin:50:sleep:0.5,save.mid:9:sleep:0.7")
    wait_for_training(run, process)
    time.sleep(random.Random(seed).uniform(0.1, 2.5))
    # What is removed while it is copied makes rsync complain.
    subprocess.run([*tool.split(), f"{run.workdir}/", f"{copy.workdir}/"], capture_output=True)
    copying = copy.start()
    run.ended(process, None, 0)
    assert_same(run, oracle("carry"))
    outcome = finish(copying)
    if outcome.code == 4:  # it was copied in the middle of its only checkpoint
        assert "checkpoint" in outcome.err and len(outcome.err.splitlines()) == 1, outcome
        return
    assert outcome.code == 0, outcome
    assert_same(copy, oracle("carry"))


PROGRAM = """
import sys
import jax.numpy as jnp, numpy as np, optax
import adabatch_jax as ab

x = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
source = ab.array_source({"x": x, "y": (x @ np.arange(8, dtype=np.float32))[:, None]})

def error(params, batch):
    return ab.weighted_mean(((batch["x"] @ params["w"] - batch["y"]) ** 2)[:, 0], batch["weight"])

with ab.Interruption() as stop:
    tx = optax.adam(0.03)
    result = ab.fit(
        lambda params, model_state, batch, rng: (error(params, batch), (model_state, {})),
        tx, ab.TrainState.create(params={"w": jnp.zeros((8, 1))}, tx=tx), source,
        ab.make_plan("8, 1.3ep: 20, 2.6ep: 50", 500, "4ep"), seed=3,
        eval_fn=lambda params, model_state, batch: {"loss": error(params, batch)},
        eval_source=source, workdir=sys.argv[1], checkpoint_every="11st", log_every="3st",
        eval_every="0.5ep", keep=ab.Keep(newest=2, best="min test_loss"),
        on_step=lambda finished, state, metrics: False,
        operation=ab.Operation(interruption=stop),
    )
sys.exit(stop.exit_code)
"""


class OwnProgram(Run):
    """A run of a program around `fit` instead of the command."""

    def start(self, fault="", further="", **environment):
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.workdir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"ADABATCH_FAULT": fault} | environment,
        )


def test_kills_of_a_users_own_program(tmp_path):
    whole, run = OwnProgram(tmp_path / "whole", ""), OwnProgram(tmp_path / "run", "")
    whole.go()
    rng = random.Random(5)
    kills = 0
    while kills < 20:
        point, most = rng.choice(
            [
                ("step.end", 12),
                ("save.mid", 1),
                ("save.committed", 1),
                ("gc.mid", 1),
                ("eval.mid", 1),
            ]
        )
        process = run.start(f"{point}:{rng.randint(1, most)}")
        outcome = finish(process)
        assert outcome.code in (0, killed_by(signal.SIGKILL)), outcome
        kills += outcome.code != 0
        if outcome.code == 0:
            assert_same(run, whole)
            shutil.rmtree(run.workdir)
    run.go()
    assert_same(run, whole)


@pytest.fixture
def as_nobody():
    """Runs a command of the package as a user without rights."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/nowhere"]
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user, with setpriv")
    probe = [*user, sys.executable, "-c", "import adabatch_jax"]
    if subprocess.run(probe, cwd=ROOT, capture_output=True).returncode:
        pytest.skip("another user may not read this Python")
    return lambda program, *arguments: finish(
        subprocess.Popen(
            [*user, sys.executable, "-m", f"adabatch_jax.{program}", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    )


@pytest.fixture
def shared():
    """A folder that others may read, as pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_user_without_rights(begin, shared, as_nobody):
    theirs = Run(shared / "theirs", begin("carry").arguments)
    theirs.go("step.end:30:sigterm", code=143)
    before = content(theirs.workdir)
    data = shared / "data"
    assert finish(prepare(data)).code == 0
    arguments = [*theirs.arguments.split(), "--data.dir", data, "--workdir"]

    def refused(code, program, *further):
        outcome = as_nobody(program, *further)
        *_, said = outcome.err.splitlines()  # matplotlib says that it has no home
        assert outcome.code == code and said.startswith("error: "), outcome
        assert "Permission denied" in said, outcome
        assert content(theirs.workdir) == before

    refused(2, "train", *arguments, theirs.workdir)
    refused(5, "prepare", "digits")  # there is no home for them
    refused(5, "report", theirs.workdir)
    mine = shared / "mine"
    mine.mkdir()
    mine.chmod(0o777)
    assert as_nobody("report", theirs.workdir, "--out", mine / "page.html").code == 0
    assert content(theirs.workdir) == before
    theirs.workdir.chmod(0o700)
    refused(2, "train", *arguments, theirs.workdir)
    refused(5, "report", theirs.workdir)
    refused(5, "train", "--config", theirs.workdir / "config.json", "--workdir", mine / "run")
    (file,) = data.glob("digits/*/digits-train*")
    for path in (file, data / "digits", data):
        mode = path.stat().st_mode
        path.chmod(0)
        refused(5, "train", *arguments, mine / "run")
        path.chmod(mode)
