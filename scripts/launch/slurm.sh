#!/usr/bin/env bash
# The whole procedure on the nodes of a SLURM job:
#   sbatch scripts/launch/slurm.sh CONFIG WORKDIR FLAGS...
# such as: sbatch scripts/launch/slurm.sh configs/search_coco.py /shared/runs/mine \
#            --config.data.folder=/shared/coco --config.pretrain.data.folder=/shared/imagenet
# The working folder, and the images, have to be on a file system that all nodes share. Batch sizes
# have to be multiples of the number of GPUs of all nodes, 16 here.
#SBATCH --job-name=crnas
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1     # one process for each node, with all of its GPUs
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300       # five minutes before the end: save, exit with 143
#SBATCH --requeue               # after a lost node; after --time the same command goes on
set -euo pipefail
config=${1:?config, such as configs/search_coco.py}
workdir=${2:?folder that all nodes share}
shift 2
# The tasks find each other by SLURM's variables. A task that fails tells the others itself, and
# each has its processes begin again where another was lost.
# srun does not take the CPUs of a task from above.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  crnas-jax run --config="$config" --workdir="$workdir" --restarts=3 "$@"
