"""Several processes on this machine: their output, their codes, signals, and that none is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adabatch_jax.cluster import local_processes
from adabatch_jax.cluster.local_processes import run_locally
from adabatch_jax.system.errors import UsageError
from tests.cluster.conftest import clean_environment

STARTER = """
import sys
from adabatch_jax.cluster.local_processes import run_locally
sys.exit(run_locally("worker", sys.argv[1:], len(sys.argv) - 2, end_seconds=0.7, stop_seconds=10))
"""


class Started:
    """A process that has started some workers, one for each of what they do."""

    def __init__(self, folder, *does, **variables):
        self.folder, self.count = folder, len(does)
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
        command = ["timeout", "--foreground", "-k", "5", "30", sys.executable, "-c", STARTER]
        self.process = subprocess.Popen(
            [*command, str(folder), *does], env=clean_environment(PYTHONPATH=paths, **variables),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def told(self):
        """What each worker said of itself, when all have begun."""
        for _ in range(1000):
            paths = sorted(self.folder.glob("*.json"))
            if len(paths) == self.count:
                return [json.loads(path.read_text()) for path in paths]
            time.sleep(0.01)
        raise AssertionError("not all have begun")

    def starter(self):
        """The number of the process itself, whose parent is `timeout`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def end(self):
        out, err = self.process.communicate(timeout=40)
        return self.process.returncode, out.splitlines(), err.splitlines()


def are_gone(pids):
    for _ in range(200):
        left = [pid for pid in pids if _is_alive(pid)]
        if not left:
            return True
        time.sleep(0.01)
    return False


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.mark.parametrize(
    ("does", "code", "first"),
    [
        (["ends with 0", "ends with 0"], 0, None),
        (["ends with 0", "ends with 4", "ends with 0"], 4, 1),
        (["sleeps", "ends with 3"], 3, 1),
        (["ignores", "ends with 3"], 3, 1),
        (["dies of 9", "sleeps"], 137, 0),
        (["ends with 134", "ends with 5"], 5, 1),  # JAX aborts who is left
        (["ends soon", "ends with 42"], 42, 1),
        (["ends with 143", "ends with 143"], 143, None),
        (["ends with 143", "ends with 5"], 5, 1),
        (["ends with 0", "dies of 15"], 143, None),
    ],
)
def test_the_code_is_that_of_the_first_failure(tmp_path, does, code, first):
    started = Started(tmp_path, *does)
    pids = [one["pid"] for one in started.told()]
    returned, out, err = started.end()
    assert returned == code
    assert sorted(out) == [f"[{k}] this is {k}" for k in range(len(does))]
    named = [] if first is None else [f"error: process {first} ended first, with exit code {code}."]
    assert sorted(err) == sorted([f"[{k}] and an error" for k in range(len(does))] + named)
    assert are_gone(pids)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)]
)
def test_a_signal_goes_once_to_all_and_who_saves_longer_may(tmp_path, number, code):
    started = Started(tmp_path, "saves", "saves long")
    pids = [one["pid"] for one in started.told()]
    os.kill(started.starter(), number)
    returned, out, _ = started.end()
    assert returned == code
    saved = [f"[{k}] saved after [{int(number)}]" for k in range(2)]
    assert [line for line in sorted(out) if "saved" in line] == saved
    assert are_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_none_is_left_where_the_one_that_started_them_is_killed(tmp_path, number):
    started = Started(tmp_path, "sleeps", "ignores", "sleeps")
    pids = [one["pid"] for one in started.told()]
    os.kill(pids[2], signal.SIGSTOP)
    os.kill(started.starter(), number)
    started.end()
    assert are_gone(pids)


def test_nothing_that_they_started_is_left(tmp_path):
    started = Started(tmp_path, "has a child", "ends with 6")
    told = started.told()
    assert started.end()[0] == 6
    assert are_gone([one["pid"] for one in told] + [told[0]["child"]])


def test_each_is_told_which_one_it_is_and_has_its_share_of_the_gpus(tmp_path):
    does = ["ends with 0"] * 2
    started = Started(tmp_path, *does, CUDA_VISIBLE_DEVICES="3,1,5,2", JAX_PLATFORMS="")
    told = started.told()
    assert started.end()[0] == 0
    assert [one["process_id"] for one in told] == ["0", "1"]
    assert {one["num_processes"] for one in told} == {"2"}
    assert {one["local_processes"] for one in told} == {"none"}
    assert len({one["coordinator"] for one in told}) == 1
    assert [one["gpus"] for one in told] == ["3,1", "5,2"]


def test_gpus_that_can_not_be_shared_out_evenly_are_refused_before_anything_starts(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(UsageError, match="2 processes can't share the 3 GPUs"):
        run_locally("no.such.module", [], 2)


def test_one_process_takes_all_chips_of_a_tpu_machine(monkeypatch):
    monkeypatch.setattr(local_processes, "num_tpu_chips", lambda: 4)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(UsageError, match="takes all 4 TPU chips of this machine"):
        run_locally("no.such.module", [], 2)


def test_who_starts_processes_is_none_of_others_itself(capsys):
    from adabatch_jax.train import main

    assert main(["--local-processes", "2", "--num-processes", "4"]) == 2
    assert "error: --num-processes: --local-processes 2 says all of it" in capsys.readouterr().err
