#!/bin/bash
# Open MPI, one process for each slot of HOSTFILE (lines such as "node1 slots=8"), or on this machine:
#   HOSTFILE=hosts bash experiments/launch/mpirun.sh 16 --workdir runs/mine --epochs 90
# Open MPI 5 and MPICH don't say where process 0 is: on several machines add --coordinator HOST:PORT.
processes=$1
shift
# When one fails the others end by themselves, and mustn't be killed while they save.
exec bash experiments/launch/restarting.sh \
  mpirun -n "$processes" ${HOSTFILE:+--hostfile "$HOSTFILE"} --bind-to none \
  --mca orte_abort_on_non_zero_status 0 \
  python -m adabatch_jax.train --stall-timeout 30m "$@"
