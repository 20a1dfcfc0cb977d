#!/bin/bash
# Runs a command again where it ends with a code that the same command goes on after, at most
# MAX_RESTARTS times; for what has no queue:
#   bash experiments/launch/restarting.sh python -m adabatch_jax.train --local-processes 8
#   42 a process is stalled or gone   134 JAX aborted   137 killed, or out of memory
# Not after 130 and 143: somebody wanted it to stop, or --max-time is over.
limit=${MAX_RESTARTS:-20} restarts=0
until "$@"; do
  code=$?
  case $code in
    42 | 134 | 137) ;;
    *) exit $code ;;
  esac
  if ((restarts == limit)); then
    echo "exit code $code after $restarts restarts, at most $limit: giving up" >&2
    exit $code
  fi
  restarts=$((restarts + 1))
  echo "exit code $code: restart $restarts of at most $limit" >&2
done
