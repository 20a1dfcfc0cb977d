#!/bin/bash
# Open MPI, one process for each slot of HOSTFILE (lines such as "node1 slots=8"), or on this machine:
#   HOSTFILE=hosts bash experiments/launch/mpirun.sh 16 --workdir runs/mine --epochs 90
# Open MPI 5 and MPICH don't say where process 0 is: on several machines add --coordinator HOST:PORT.
processes=$1
shift
# When one fails mpirun ends the others, which have nothing to save then: a stop they leave together.
# (With orte_abort_on_non_zero_status 0 mpirun 4.1.4 says 0 for 42 and 143, and hangs after a kill.)
exec bash experiments/launch/restarting.sh \
  mpirun -n "$processes" ${HOSTFILE:+--hostfile "$HOSTFILE"} --bind-to none \
  python -m adabatch_jax.train --stall-timeout 30m "$@"
