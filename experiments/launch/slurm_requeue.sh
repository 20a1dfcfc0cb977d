#!/bin/bash
# The end of a job of SLURM: slurm_requeue.sh CODE puts it into the queue again where the same
# command goes on, at most MAX_RESTARTS times, and exits with CODE.
#   42 a process is stalled or gone   134 JAX aborted   137 killed, or out of memory
#   143 preempted, or out of time: SLURM doesn't requeue a job that ends within its grace time
code=$1 limit=${MAX_RESTARTS:-20} restarts=${SLURM_RESTART_COUNT:-0}
case $code in
  42 | 134 | 137 | 143)
    if ((restarts < limit)); then
      echo "exit code $code: restart $((restarts + 1)) of at most $limit"
      scontrol requeue "$SLURM_JOB_ID" # ends this script, too
    else
      echo "exit code $code after $restarts restarts, at most $limit: this job gives up;" \
        "submitted again it goes on, after a longer time with a larger MAX_RESTARTS"
    fi
    ;;
esac
exit "$code"
