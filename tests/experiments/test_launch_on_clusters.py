"""The launch files on a real SLURM of emulated nodes, and with a real mpirun.

A run that something happened to is compared with one process that nothing happened to.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.cluster.conftest import clean_environment
from tests.cluster.slurm import MISSING, slurm_cluster
from tests.pages import ROOT

pytestmark = pytest.mark.cluster
LAUNCH = ROOT / "experiments" / "launch"
RUN = (
    "--epochs 3 --batch-schedule 64 x2 every 1ep max 256 --eval-every 3ep --log-every 2st "
    "--steps-per-dispatch 1 --heartbeat-timeout 10s"
).split()
# The signal reaches the child before the shell, which would go on and then die of it untrapped.
WAITS = "echo began; sleep 60 & wait; sleep 2"
SAME = ("step", "samples", "epoch", "phase", "batch_size", "learning_rate", "examples_digest")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables with a `python` that begins as `SHIM` says, and goes on as this one."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "python").write_text(f'#!/bin/bash\neval "$SHIM"\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    return clean_environment(PATH=f"{folder}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def slurm(environment, tmp_path_factory):
    """`environment` with a SLURM of four nodes, which have two CPUs and two GPUs each."""
    if MISSING:
        pytest.skip(f"SLURM isn't installed: no {', '.join(MISSING)}")
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), 4) as variables:
        yield environment | variables


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    """The rows of one process on one device."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    command = ["python", "-m", "adabatch_jax.train", *RUN, "--workdir", str(workdir)]
    done = call(command, environment)
    assert done.returncode == 0, done.stderr
    return rows_of(workdir)


def call(command, environment, seconds=150):
    return subprocess.run(
        ["timeout", "-k", "5", str(seconds), *command], env=environment, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_is_undisturbed(workdir, undisturbed):
    """Every example was in its place of its batch, once an epoch; losses are close."""
    for ours, theirs in zip(rows_of(workdir), undisturbed, strict=True):
        assert [ours[name] for name in SAME] == [theirs[name] for name in SAME]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def state_of(job, slurm):
    shown = call(["scontrol", "show", "job", "-o", job], slurm, 20).stdout
    return dict(re.findall(r"(\w+)=(\S*)", shown))


def wait_for(job, slurm, *states, seconds=200):
    """The job when it is in one of the states; one that waits for its turn is started at once."""
    until = time.monotonic() + seconds
    while (state := state_of(job, slurm))["JobState"] not in states:
        if state["JobState"] == "PENDING" and state["Reason"] == "BeginTime":
            time.sleep(2)  # in the same second a node takes it for the one that it was told to end
            call(["scontrol", "update", f"JobId={job}", "StartTime=now"], slurm, 20)
        assert time.monotonic() < until, state
        time.sleep(0.3)
    return state


def wait_until(is_so, seconds=90):
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.1)


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")


def submit(slurm, script, *arguments, options=(), **variables):
    done = call(
        ["sbatch", "--parsable", "--cpus-per-task=1", *options, LAUNCH / script, *arguments],
        slurm | variables,
        20,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_job_whose_task_is_killed_is_queued_again_and_goes_on(slurm, undisturbed, tmp_path):
    shim = (
        '[ "$SLURM_PROCID" = 1 ] && [ -z "$SLURM_RESTART_COUNT" ] && '
        "export ADABATCH_FAULT=step.end:30:kill9"
    )
    output = tmp_path / "output"
    job = submit(
        slurm, "slurm_task_per_gpu.sh", *RUN, "--workdir", str(tmp_path / "run"), SHIM=shim,
        options=["--ntasks-per-node=2", "--gpus-per-node=2", f"--output={output}"],
    )  # fmt: skip
    state = wait_for(job, slurm, *ENDED)
    text = output.read_text()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), text
    assert "restart 1 of at most 20" in text and "on 2 cpu devices" in text
    assert_is_undisturbed(tmp_path / "run", undisturbed)


def test_a_job_that_is_preempted_saves_and_goes_on(slurm, undisturbed, tmp_path):
    shim = '[ -z "$SLURM_RESTART_COUNT" ] && export ADABATCH_FAULT=step.end:11:sleep:4'
    output, metrics = tmp_path / "output", tmp_path / "run" / "metrics.jsonl"
    job = submit(
        slurm, "slurm_task_per_node.sh", *RUN, "--workdir", str(tmp_path / "run"), SHIM=shim,
        options=["--nodes=2", "--gpus-per-node=2", "--cpus-per-task=2", f"--output={output}"],
    )  # fmt: skip
    wait_until(lambda: metrics.exists() and '"step": 10' in metrics.read_text())
    urgent = submit_urgent(slurm, tmp_path)
    assert wait_for(urgent, slurm, *ENDED)["JobState"] == "COMPLETED"
    state = wait_for(job, slurm, *ENDED)
    text = output.read_text()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), text
    assert "stopped by SIGTERM after update" in text
    assert "exit code 143: restart 1 of at most 20" in text
    assert_is_undisturbed(tmp_path / "run", undisturbed)


def submit_urgent(slurm, folder):
    command = ["sbatch", "--parsable", "-p", "urgent", "-N4", "-c2", f"--output={folder}/urgent"]
    return call([*command, "--wrap", "true"], slurm, 20).stdout.strip()


def test_a_job_whose_node_dies_goes_on_on_others(slurm, undisturbed, tmp_path):
    shim = '[ -z "$SLURM_RESTART_COUNT" ] && export ADABATCH_FAULT=step.end:30:sleep:60'
    output, metrics = tmp_path / "output", tmp_path / "run" / "metrics.jsonl"
    job = submit(
        slurm, "slurm_task_per_node.sh", *RUN, "--workdir", str(tmp_path / "run"), SHIM=shim,
        options=["--nodes=2", "--gpus-per-node=2", f"--output={output}"],
    )  # fmt: skip
    wait_until(lambda: metrics.exists() and '"step": 28' in metrics.read_text())
    node = "127.0.0.2"
    down = ["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test"]
    assert node in call(["squeue", "-h", "-j", job, "-o", "%N"], slurm, 20).stdout.replace(
        "[1-2]", "2"
    )
    call(down, slurm, 20)
    state = wait_for(job, slurm, *ENDED)
    call(["scontrol", "update", f"NodeName={node}", "State=RESUME"], slurm, 20)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), output.read_text()
    assert_is_undisturbed(tmp_path / "run", undisturbed)


def test_a_job_gives_up_after_so_many_restarts(slurm, tmp_path):
    output = tmp_path / "output"
    job = submit(
        slurm, "slurm_task_per_node.sh", SHIM="exit 42", MAX_RESTARTS="1",
        options=["--nodes=2", "--gpus-per-node=2", f"--output={output}"],
    )  # fmt: skip
    state = wait_for(job, slurm, *ENDED)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "42:0", "1")
    text = output.read_text()
    assert "exit code 42: restart 1 of at most 1" in text
    assert "exit code 42 after 1 restarts, at most 1: this job gives up" in text


def test_a_job_that_is_cancelled_is_not_queued_again(slurm, tmp_path):
    output = tmp_path / "output"
    shim = f"trap 'echo heard; sleep 1; exit 143' TERM; {WAITS}"
    job = submit(
        slurm, "slurm_task_per_node.sh", SHIM=shim,
        options=["--gpus-per-node=2", f"--output={output}"],
    )  # fmt: skip
    wait_for(job, slurm, "RUNNING")
    wait_until(lambda: output.exists() and "began" in output.read_text())
    call(["scancel", job], slurm, 20)
    assert wait_for(job, slurm, *ENDED)["JobState"] == "CANCELLED"
    time.sleep(3)
    assert state_of(job, slurm)["JobState"] == "CANCELLED"
    assert "heard" in output.read_text() and "restart" not in output.read_text()


def test_a_job_whose_time_is_nearly_over_is_queued_again(slurm, tmp_path):
    """By the signal that SLURM sends then, sent by hand: its own comes up to a minute early."""
    output = tmp_path / "output"
    shim = f"[ -n \"$SLURM_RESTART_COUNT\" ] && echo again && exit 0; trap 'exit 143' USR1; {WAITS}"
    job = submit(
        slurm, "slurm_task_per_gpu.sh", SHIM=shim,
        options=["--ntasks-per-node=2", "--gpus-per-node=2", f"--output={output}"],
    )  # fmt: skip
    wait_until(lambda: output.exists() and output.read_text().count("began") == 2)
    call(["scancel", "-s", "USR1", job], slurm, 20)
    state = wait_for(job, slurm, *ENDED)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), output.read_text()
    text = output.read_text()
    assert "exit code 143: restart 1 of at most 20" in text and text.count("again") == 2


def test_a_chain_of_jobs_on_1_2_and_4_gpus(slurm, undisturbed, tmp_path):
    done = call(
        ["bash", LAUNCH / "slurm_chain.sh", "1 2 4", *RUN, "--workdir", str(tmp_path / "run")],
        slurm
        | {
            "GPUS_PER_NODE": "2",
            "SBATCH_OPTIONS": f"--cpus-per-task=1 --output={tmp_path}/%j",
            # The second job is killed once.
            "SHIM": '[ "$SLURM_NTASKS" = 2 ] && [ "$SLURM_PROCID" = 0 ] && '
            '[ -z "$SLURM_RESTART_COUNT" ] && export ADABATCH_FAULT=step.end:5:kill9',
        },
    )
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"job (\d+)", done.stdout)
    states = [wait_for(job, slurm, *ENDED) for job in jobs]
    texts = [(tmp_path / job).read_text() for job in jobs]
    assert [state["JobState"] for state in states] == ["COMPLETED"] * 3, texts
    assert [state["Restarts"] for state in states] == ["0", "1", "0"]
    for count, text in zip((1, 2, 4), texts, strict=True):
        assert f"on {count} cpu device" in text
    assert_is_undisturbed(tmp_path / "run", undisturbed)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI isn't installed: no mpirun")
def test_mpirun_starts_again_after_a_kill_and_not_after_a_stop(environment, undisturbed, tmp_path):
    first = f"[ ! -e {tmp_path}/was ]"
    shim = (
        f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && {first} && touch {tmp_path}/was && '
        "export ADABATCH_FAULT=step.end:30:kill9"
    )
    variables = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    variables |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "SHIM": shim}
    command = ["bash", LAUNCH / "mpirun.sh", "2", *RUN, "--workdir", str(tmp_path / "run")]
    done = call([*command], environment | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit code 137: restart 1 of at most 20" in done.stderr
    assert_is_undisturbed(tmp_path / "run", undisturbed)
    stopped = variables | {"SHIM": "export ADABATCH_FAULT=step.end:5:sigterm"}
    command[-1] = str(tmp_path / "stopped")
    done = call([*command], environment | stopped)
    assert done.returncode == 143, done.stdout + done.stderr
    assert "restart" not in done.stderr and "stopped by SIGTERM" in done.stdout
