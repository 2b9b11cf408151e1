#!/usr/bin/env bash
# A command on two processes of this machine, each with two virtual CPU devices:
# scripts/launch/two_processes.sh crnas-jax run --config=configs/quickstart.py --config.devices=0 \
#   --workdir=runs/two
# The second one's screen is empty: what it says is in logs/host-1.txt of the working folder.
set -euo pipefail
export JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=2 ${XLA_FLAGS:-}"
joint=(--coordinator="localhost:${PORT:-8476}" --num_processes=2)
"$@" "${joint[@]}" --process_id=1 &
other=$!
"$@" "${joint[@]}" --process_id=0 &
first=$!
trap 'kill -TERM $first' TERM  # the first one tells the other
trap : INT                     # a terminal has told both
status=0
wait $first || status=$?
# A trap ends `wait`, not the process.
while kill -0 $first 2>/dev/null; do status=0; wait $first || status=$?; done
wait $other || true
exit $status
