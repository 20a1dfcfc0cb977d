"""`train --stop-at-phase`: one job for each phase, each with devices of its own."""

import json
import os
import subprocess
import sys

import pytest

from adabatch_jax.train import main

RUN = "--epochs 3 --batch-schedule 64 x2 every 1ep max 256 --eval-every 3ep --log-every 2st".split()


def job(workdir, num_devices, *further):
    """A process whose CPU is so many devices; its exit code and the last line that it printed."""
    done = subprocess.run(
        ["timeout", "-k", "5", "180", sys.executable, "-m", "adabatch_jax.train", *RUN,
         "--workdir", str(workdir), *further],
        env={**os.environ, "JAX_PLATFORMS": "cpu",
             "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"},
        capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, (done.stdout.strip().splitlines() or [done.stderr])[-1]


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow  # starts six processes
def test_a_chain_of_jobs_on_1_2_and_4_devices(tmp_path):
    whole, chain = tmp_path / "whole", tmp_path / "chain"
    assert job(whole, 1)[0] == 0
    for num_devices, phase in ((1, 2), (2, 3)):
        code, line = job(chain, num_devices, "--stop-at-phase", "next")
        assert code == 0 and line.startswith(f"stopped before phase {phase}, after update ")
        assert json.loads((chain / "summary.json").read_text())["stopped_at_phase"] == phase
    code, line = job(chain, 1, "--stop-at-phase", "3")
    assert code == 0 and "already, nothing was trained" in line
    code, line = job(chain, 4, "--stop-at-phase", "next")
    assert code == 0 and line.startswith("done: ")
    assert "stopped_at_phase" not in json.loads((chain / "summary.json").read_text())
    same = ("step", "samples", "phase", "batch_size", "learning_rate", "examples_digest")
    for ours, theirs in zip(rows_of(chain), rows_of(whole), strict=True):
        assert [ours[name] for name in same] == [theirs[name] for name in same]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        ("9", "stop_at_phase: … 9 … 3"),
        ("1", "--stop-at-phase: … at least 2 … 1"),
        ("last", "--stop-at-phase: 'last' … next"),
    ],
)
def test_phases_that_there_are_not(refused, tmp_path, phase, text):
    refused(main, [*RUN, "--workdir", str(tmp_path / "run"), "--stop-at-phase", phase], text)
