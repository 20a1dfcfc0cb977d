#!/bin/bash
# A TPU pod, one process for each of its hosts, from a machine that has gcloud:
#   bash experiments/launch/tpu_pod.sh NAME ZONE --workdir /mnt/runs/mine --epochs 90
# The pod is there already (gcloud compute tpus tpu-vm create, or a queued resource). /mnt/runs is a
# disk that all hosts see, such as Filestore. JAX finds the other hosts by itself.
set -euo pipefail
name=$1 zone=$2
shift 2
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

git archive --format=tar.gz --prefix=adabatch/ --output=adabatch.tar.gz HEAD
gcloud compute tpus tpu-vm scp adabatch.tar.gz "$name": --zone="$zone" --worker=all
on_all "tar xzf adabatch.tar.gz && python3 -m venv .venv && .venv/bin/pip install -q -e 'adabatch[train,tpu]'"
export -f on_all
export name zone
exec bash experiments/launch/restarting.sh \
  bash -c 'on_all "$1"' - "cd adabatch && ../.venv/bin/python -m adabatch_jax.train --stall-timeout 30m ${*@Q}"
