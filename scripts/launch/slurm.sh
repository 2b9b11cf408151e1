#!/usr/bin/env bash
# The whole procedure on the nodes of a SLURM job: sbatch scripts/launch/slurm.sh CONFIG WORKDIR
# The working folder, and the images, have to be on a file system that all nodes share.
#SBATCH --job-name=crnas
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1     # one process for each node, with all of its GPUs
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300       # five minutes before the end: save, exit with 143
#SBATCH --requeue
set -euo pipefail
config=${1:?config, such as configs/search_coco.py}
workdir=${2:?folder that all nodes share}
# The tasks find each other by SLURM's variables. A task that fails tells the others itself.
srun --kill-on-bad-exit=0 crnas-jax run --config="$config" --workdir="$workdir" --restarts=3
