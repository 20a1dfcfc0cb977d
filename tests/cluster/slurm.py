"""A SLURM cluster of emulated nodes on this machine, without systemd: for root only.

The nodes are called 127.0.0.1, 127.0.0.2 ...: each has an address of its own, and the coordinator's
host, which is taken from the list of nodes, can be resolved.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time

from adabatch_jax.cluster.local_processes import free_port

MISSING = [
    name for name in ("munged", "slurmctld", "slurmd", "srun", "sbatch") if shutil.which(name) is None
]  # fmt: skip
if not MISSING and os.geteuid() != 0:
    MISSING = ["root's rights, which its daemons want"]

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=15
{nodes}
PartitionName=main Nodes=127.0.0.[1-{count}] Default=YES PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=127.0.0.[1-{count}] PriorityTier=10
"""


@contextlib.contextmanager
def slurm_cluster(folder, count):
    """Runs the cluster; gives the variables that its commands need."""
    host = socket.gethostname().partition(".")[0]
    ports = [free_port() for _ in range(count + 1)]
    nodes = "\n".join(
        f"NodeName=127.0.0.{k} NodeHostname={host} NodeAddr=127.0.0.{k} Port={ports[k]} "
        "CPUs=2 Gres=gpu:2"
        for k in range(1, count + 1)
    )
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(host=host, ports=ports, folder=folder, nodes=nodes, count=count)
    )
    # Files that count as two GPUs: what asks for some is started, and computes on the CPU.
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    try:
        _call(
            ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
             f"--seed-file={folder}/munged.seed"], variables,
        )  # fmt: skip
        _call(["slurmctld"], variables)
        for k in range(1, count + 1):
            (folder / f"spool.127.0.0.{k}").mkdir()
            _call(["slurmd", "-N", f"127.0.0.{k}"], variables)
        for _ in range(100):
            idle = _call(["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"], variables)
            if len(idle.split()) == count:
                break
            time.sleep(0.1)
        else:
            raise AssertionError((folder / "slurmctld.log").read_text())
        yield variables
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            _call(["scancel", "-u", "root"], variables)
        time.sleep(0.5)
        for name in ("slurmd.*.pid", "slurmctld.pid", "munged.pid"):
            for path in folder.glob(name):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(int(path.read_text()), signal.SIGTERM)


def _call(command, variables):
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, timeout=30
    )
    return done.stdout
