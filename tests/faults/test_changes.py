"""Other circumstances after a restart: devices, settings, a second process, the surroundings."""

import json
import os
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from adabatch_jax.system.environment import THREAD_VARIABLES, usable_cores
from tests.faults.harness import (
    Run,
    assert_same,
    content,
    finish,
    killed_by,
    wait_for_training,
)

pytestmark = pytest.mark.faults

KILLED = killed_by(signal.SIGKILL)


@pytest.mark.parametrize(
    "layouts",
    [
        ["", "--cpu-devices 2", "--cpu-devices 4", "--cpu-devices 2", ""],
        ["--cpu-devices 2 --shard-params", "--cpu-devices 4", "--cpu-devices 4 --shard-params", ""],
        ["--input streaming", "--input resident", "--input streaming --cpu-devices 2"],
    ],
)
def test_another_number_of_devices(oracle, begin, layouts):
    further = "--lr 0.005"  # a higher one makes anything of what is rounded differently
    whole, run = oracle("carry", further), begin("carry", further)
    for layout in layouts[:-1]:
        run.go("step.end:29", code=KILLED, further=layout)
        assert run.newest() is not None
    run.go(further=layouts[-1])
    for ours, theirs in zip(run.rows(), whole.rows(), strict=True):
        for name in theirs.keys() - {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}:
            assert ours[name] == theirs[name], name  # the digest of the examples among them
        np.testing.assert_allclose(
            float(ours["train_loss"]), float(theirs["train_loss"]), rtol=1e-3
        )
    assert run.summary()["examples_digest"] == whole.summary()["examples_digest"]


@pytest.fixture
def on_core(monkeypatch):
    """`on_core()`: from now on processes run on one core."""
    before = os.sched_getaffinity(0)
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield lambda: os.sched_setaffinity(0, {min(before)})
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("fault", ["step.end:60:sigterm", "step.end:60"])
def test_another_number_of_cores(oracle, begin, on_core, fault):
    if usable_cores() == 1:
        pytest.skip("one core is all there is")
    whole, run = oracle("carry"), begin("carry")
    run.go(fault, code=143 if "sigterm" in fault else KILLED)
    on_core()
    threads = json.loads((run.workdir / "environment.json").read_text())["numerics"]["threads"]
    run.go("step.end:20", code=KILLED, says=f"keeps the {threads} threads")
    run.go(says=f"keeps the {threads} threads")
    assert_same(run, whole)


def test_what_the_environment_says_of_numbers_is_not_the_commands(oracle, begin):
    run = begin("carry")
    run.go("step.end:60:sigterm", code=143, JAX_ENABLE_X64="1", JAX_RANDOM_SEED_OFFSET="2")
    run.go(
        JAX_THREEFRY_PARTITIONABLE="0", JAX_DEFAULT_PRNG_IMPL="rbg", JAX_ENABLE_X64="1",
        JAX_NUMPY_DTYPE_PROMOTION="strict", says="jax_enable_x64 is True in this environment",
    )  # fmt: skip
    assert_same(run, oracle("carry"))


def test_another_rounding_is_told_in_one_line_and_recorded(oracle, begin):
    run = begin("carry")
    run.go("step.end:60:sigterm", code=143)
    flags = f"{os.environ['XLA_FLAGS']} --xla_cpu_max_isa=SSE4_2"
    outcome = run.go(XLA_FLAGS=flags, JAX_DEFAULT_MATMUL_PRECISION="highest")
    told = [line for line in outcome.out.splitlines() if "rounded" in line]
    assert told == [
        "note: from update 60 on results may be rounded differently: XLA_FLAGS none -> "
        "--xla_cpu_max_isa=SSE4_2, jax_default_matmul_precision none -> highest"
    ]
    assert [change["setting"] for change in run.summary()["decisions"]] == [
        "XLA_FLAGS", "jax_default_matmul_precision",
    ]  # fmt: skip
    whole = oracle("carry")
    assert run.rows()[:20] == whole.rows()[:20]
    assert run.summary()["examples_digest"] == whole.summary()["examples_digest"]


@pytest.mark.parametrize(
    ("further", "name"),
    [
        ("--model resnet20_cifar", "model"),
        ("--compute-dtype bfloat16", "compute_dtype"),
        ("--optimizer adamw", "optimizer"),
        ("--seed 1", "seed"),
        ("--remainder drop", "remainder"),
        ("--data.flip", "data.flip"),
        ("--data.train-split train[:1000]", "data.train_split"),
        ("--momentum 0.5", "momentum"),
        ("--batch-schedule 16, 0.6ep: 24", "phase 2"),
        ("--lr 0.1", "learning rate"),
    ],
)
def test_another_past_is_refused_by_name(oracle, tmp_path, further, name):
    shutil.copytree(oracle("carry").workdir, tmp_path / "run")
    run = Run(tmp_path / "run", oracle("carry").arguments)
    before = content(run.workdir)
    outcome = run.go(further=further, code=4, says=name)
    assert len(outcome.err.splitlines()) == 1
    assert content(run.workdir) == before


def test_an_edited_future_goes_on_and_is_told(begin):
    run = begin("carry")
    run.go("step.end:30:sigterm", code=143)
    edited = "--batch-schedule 16, 0.7ep: 30, 1.5ep: 60 --epochs 2.6 --log-every 5st"
    outcome = run.go("step.end:60:sigterm", code=143, further=edited)
    assert "batch" in outcome.out and outcome.resumed_after == 30
    run.go(further=edited)
    plan = json.loads((run.workdir / "plan.json").read_text())
    assert [phase["batch_size"] for phase in plan["phases"]] == [16, 30, 60]
    # As if it had been planned so from the start.
    from_start = begin("carry", edited)
    from_start.workdir = run.workdir.with_name("from_start")
    from_start.go()
    for name in ("weights_digest", "examples_digest"):
        assert run.summary()[name] == from_start.summary()[name]


def test_a_longer_run_after_kills_is_the_longer_run(oracle, begin):
    longer = "--epochs 2.9"
    run, whole = begin("carry"), oracle("carry", longer)
    run.go("step.end:120", code=KILLED)
    run.go("step.end:20", code=KILLED, further=longer)
    run.go(further=longer)
    assert_same(run, whole)


def test_two_processes_on_one_folder(begin):
    run = begin("carry")
    process = run.start("step.begin:12:sleep:15")
    wait_for_training(run, process)
    outcome = finish(run.start())
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome
    for text in (str(process.pid), socket.gethostname()):
        assert text in outcome.err
    process.kill()
    run.ended(process, None, KILLED)
    run.go("step.end:9:sigterm", code=143)  # nobody had to remove the lock


def test_the_lock_of_a_process_that_is_gone(oracle, begin):
    run = begin("carry")
    run.go("step.end:9:sigterm", code=143)
    left = json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01T00:00:00Z"})
    for text in (left, "", "{", "[]", '{"host": 3}', "\0\0\0"):
        (run.workdir / ".lock").write_text(text)
        run.go("step.end:9:sigterm", code=143)
    run.go()
    assert_same(run, oracle("carry"))


def test_twenty_columns_and_no_terminal(oracle, begin):
    run = begin("carry")
    run.go(COLUMNS="20", TERM="dumb", LC_ALL="C")
    assert_same(run, oracle("carry"))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_that_is_closed(oracle, begin, stream):
    run = begin("carry")
    process = run.start("step.begin:10:sleep:1")
    wait_for_training(run, process)
    getattr(process, stream).close()
    assert process.wait(timeout=240) == 0
    assert_same(run, oracle("carry"))


def test_without_the_preemption_service(oracle, begin):
    run = begin("carry")
    run.go("step.end:9:sigterm", code=143, JAX_ENABLE_PREEMPTION_SERVICE="false")
    run.go(JAX_ENABLE_PREEMPTION_SERVICE="false")
    assert_same(run, oracle("carry"))


@pytest.mark.parametrize("umask", [0o027, 0o077, 0o000])
def test_the_users_umask(begin, umask):
    run = begin("carry")
    before = os.umask(umask)
    try:
        run.go("step.end:9:sigterm", code=143)
    finally:
        os.umask(before)
    for path in run.workdir.rglob("*"):
        allowed = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == allowed & ~umask, path


def test_started_three_times_at_once(oracle, begin):
    run = begin("carry")
    processes = [run.start() for _ in range(3)]
    outcomes = sorted((finish(process) for process in processes), key=lambda o: o.code)
    # A late one may find the run finished.
    assert [outcome.code for outcome in outcomes][0] == 0
    for outcome in outcomes[1:]:
        assert outcome.code == 2 or "finished already" in outcome.out, outcome
    assert_same(run, oracle("carry"))


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 1), ("model", "resnet20_cifar"), ("lr", "0.1")]
)
def test_an_edited_configuration_in_the_folder(oracle, begin, field, value):
    run = begin("carry")
    run.go("step.end:30:sigterm", code=143)
    path = run.workdir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    edited = Run(run.workdir, f"--config {path}")
    edited.go(code=4, says="learning rate" if field == "lr" else field)
    run.go()  # the checkpoint says what was done, and the command what is asked for
    assert_same(run, oracle("carry"))


def test_an_edited_plan_in_the_folder_decides_nothing(oracle, begin):
    run = begin("carry")
    run.go("step.end:30:sigterm", code=143)
    path = run.workdir / "plan.json"
    path.write_text(path.read_text().replace("16", "17"))
    run.go()
    assert_same(run, oracle("carry"))
    ours, theirs = (
        json.loads((one.workdir / "plan.json").read_text())["phases"]
        for one in (run, oracle("carry"))
    )
    assert ours == theirs


def test_stopped_for_a_while_by_the_system(oracle, begin):
    """SIGSTOP, as when a laptop sleeps: neither lost nor taken for a stall."""
    run = begin("carry")
    process = run.start("step.begin:20:sleep:2", "--stall-timeout 10s")
    wait_for_training(run, process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(12)
    process.send_signal(signal.SIGCONT)
    run.ended(process, None, 0)
    assert_same(run, oracle("carry"))
