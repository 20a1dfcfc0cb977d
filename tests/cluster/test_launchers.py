"""Real launchers start the program: SLURM on emulated nodes, and Open MPI's mpirun."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from adabatch_jax.cluster.local_processes import free_port
from tests.cluster.conftest import PROGRAM, clean_environment, ended, start
from tests.cluster.slurm import MISSING, slurm_cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The variables of a shell that talks to four emulated nodes."""
    if MISSING:
        pytest.skip(f"SLURM isn't installed: no {', '.join(MISSING)}")
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), 4) as variables:
        yield clean_environment(**variables)


@pytest.mark.cluster
def test_srun_starts_one_process_for_each_task(slurm):
    # Nodes with two tasks and with one: a task's number on its node isn't its number.
    one = ended(start(["srun", "-N2", "-n3", sys.executable, PROGRAM], slurm))
    assert one.code == 0, one.text
    assert sorted((told["index"], told["count"], told["sum"]) for told in one.told) == [
        (0, 3, 6.0),
        (1, 3, 6.0),
        (2, 3, 6.0),
    ]


@pytest.mark.cluster
def test_a_batch_script_that_forgets_srun_is_told(slurm, tmp_path):
    output, program = tmp_path / "output", f"{sys.executable} {PROGRAM}"
    script = f"{program}; echo code $?; {program} sum --num-processes 1; echo code $?; echo done"
    subprocess.run(
        ["sbatch", "-N2", "-n3", "-o", output, "--wrap", script], env=slurm, check=True, timeout=30
    )
    for _ in range(300):
        if output.exists() and "done" in output.read_text():
            break
        time.sleep(0.1)
    text = output.read_text()
    assert re.findall(r"code (\d+)", text) == ["2", "0"], text
    assert "SLURM_NTASKS is 3, and this process wasn't started by srun" in text
    assert '"count": 1' in text


# Open MPI 5 doesn't say where mpirun is.
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI isn't installed: no mpirun")
def test_mpirun_starts_one_process_for_each_rank(version):
    command = ["mpirun", "--oversubscribe", "-n", "2"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    if version == 5:
        command += ["env", "-u", "OMPI_MCA_orte_hnp_uri"]
    port = str(free_port())
    environment = clean_environment(JAX_COORDINATOR_PORT=port)
    one = ended(start([*command, sys.executable, PROGRAM], environment))
    assert one.code == 0, one.text
    assert sorted((told["index"], told["sum"]) for told in one.told) == [(0, 3.0), (1, 3.0)]
