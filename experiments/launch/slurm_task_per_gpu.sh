#!/bin/bash
# SLURM, one process for each GPU; in the checkout, with the environment active:
#   sbatch --nodes=2 experiments/launch/slurm_task_per_gpu.sh --workdir runs/mine --epochs 90
# Options before the script's name replace those here, what is behind it are train's flags.
#SBATCH --nodes=1 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8
#SBATCH --time=04:00:00 --signal=USR1@300
#SBATCH --requeue --open-mode=append --output=slurm-%j.out

# A node's GPUs are seen by all its tasks, which share them out: with --gpus-per-task each would see
# one, and NCCL would have no direct way to the others. When a task fails the others end by
# themselves, with codes that say why; what hasn't two minutes later is killed.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=120 \
  python -m adabatch_jax.train --stall-timeout 30m "$@"
bash experiments/launch/slurm_requeue.sh $?
