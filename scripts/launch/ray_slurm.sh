#!/usr/bin/env bash
# A search whose candidates are trained on the nodes of a SLURM job, by Ray:
#   sbatch scripts/launch/ray_slurm.sh run-spinenet --config=configs/search_spinenet.py:gpu \
#     --config.search.in_flight=64 --config.data.folder=/shared/coco --workdir=/shared/runs/mine
# search.in_flight: as many as there are workers; here four (executor.per_device) on each of 16 GPUs.
# With `run` in place of `run-spinenet` CR-NAS, whose finalists and last networks are trained so.
# The working folder has to be on a file system that all nodes share; images may lie on each node.
# Install this package with its extra `ray` on all nodes, the same versions.
#SBATCH --job-name=crnas-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300  # to this script, five minutes before the end: save, exit with 143
#SBATCH --no-kill            # a lost node's attempts are made on the others
#SBATCH --requeue            # after a lost first node; after --time the same command goes on
set -euo pipefail
: "${1:?command, such as run-spinenet --config=configs/search_spinenet.py:gpu --workdir=FOLDER}"
# This script runs on the first node, where the head will be: the command needs a node beside it.
head=$(hostname)
port=$((20000 + SLURM_JOB_ID % 10000))
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID  # /tmp/ray may be another user's
export RAY_USAGE_STATS_ENABLED=0          # it reports usage otherwise
export RAY_worker_niceness=0              # 15 otherwise
# srun does not take the CPUs of a task from above.
# shellcheck disable=SC2016
srun --no-kill --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c '
  where=(--address="$0:$1")
  if [ "$SLURM_PROCID" = 0 ]; then where=(--head --port="$1" --include-dashboard=false); fi
  exec ray start "${where[@]}" --num-cpus="$SLURM_CPUS_PER_TASK" --block
' "$head" "$port" &
nodes=$!
until (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null; do
  kill -0 $nodes  # ends this script where Ray does not start
  sleep 1
done
crnas-jax "$@" --config.executor.kind=ray --config.executor.address="$head:$port" &
search=$!
trap 'kill -TERM $search' TERM
status=0
wait $search || status=$?
# A trap ends `wait`, not the process.
while kill -0 $search 2>/dev/null; do status=0; wait $search || status=$?; done
kill $nodes || true
exit $status
