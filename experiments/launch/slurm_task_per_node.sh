#!/bin/bash
# SLURM, one process for each node, with all its GPUs; in the checkout, with the environment active:
#   sbatch --nodes=2 experiments/launch/slurm_task_per_node.sh --workdir runs/mine --epochs 90
# One process reads and decodes for a whole node: where that is too slow, one for each GPU.
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=04:00:00 --signal=USR1@300
#SBATCH --requeue --open-mode=append --output=slurm-%j.out

# When a task fails the others end by themselves; what hasn't two minutes later is killed.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=120 \
  python -m adabatch_jax.train --stall-timeout 30m "$@"
bash experiments/launch/slurm_requeue.sh $?
