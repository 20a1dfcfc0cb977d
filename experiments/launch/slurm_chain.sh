#!/bin/bash
# SLURM, a chain of jobs, one for each phase, each with GPUs of its own number:
#   bash experiments/launch/slurm_chain.sh "8 16 64" --workdir runs/growing --epochs 90
# Job K begins when the one before has ended well, and stops before phase K + 1; the last one goes on
# to the end. A phase that is done already has 0 GPUs, so that a broken chain is mended.
# phase_sizes.py makes the numbers from a plan. GPUS_PER_NODE is a node's number of GPUs,
# SBATCH_OPTIONS what else sbatch is to know, such as "--partition=main --time=08:00:00".
set -euo pipefail
read -ra sizes <<<"$1"
shift
per_node=${GPUS_PER_NODE:-8}
read -ra further <<<"${SBATCH_OPTIONS:-}"

for gpus in "${sizes[@]}"; do
  if ((gpus > per_node && gpus % per_node)); then
    echo "error: $gpus GPUs aren't whole nodes of $per_node" >&2
    exit 2
  fi
done

previous=
for phase in $(seq ${#sizes[@]}); do
  gpus=${sizes[phase - 1]}
  ((gpus)) || continue
  here=$((gpus < per_node ? gpus : per_node))
  options=(--parsable --nodes="$((gpus / here))")
  options+=(--ntasks-per-node="$here" --gpus-per-node="$here")
  # A job that is requeued hasn't ended: those behind it wait.
  [[ -z $previous ]] || options+=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
  stop=()
  ((phase == ${#sizes[@]})) || stop=(--stop-at-phase $((phase + 1)))
  previous=$(sbatch "${options[@]}" "${further[@]}" \
    experiments/launch/slurm_task_per_gpu.sh "$@" "${stop[@]}")
  echo "phase $phase on $gpus GPUs: job $previous"
done
