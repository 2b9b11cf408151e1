#!/usr/bin/env bash
# A command on all workers of a TPU VM slice: scripts/launch/tpu_vm.sh NAME ZONE COMMAND...
# such as: scripts/launch/tpu_vm.sh my-v5e us-west4-a crnas-jax run --config=configs/search_coco.py \
#            --config.data.folder=/mnt/data/coco --config.pretrain.data.folder=/mnt/data/imagenet \
#            --workdir=/mnt/data/runs/mine
# Batch sizes have to be multiples of the slice's number of devices. To stop, from another terminal:
#          scripts/launch/tpu_vm.sh my-v5e us-west4-a pkill -TERM -o -f bin/crnas-jax
# Install crnas_jax on all workers first (pip install, by this script too). The command ends with its
# terminal: start it in tmux on a machine that stays.
# The workers find each other by the metadata of the VM. /mnt/data stands for a file system that
# is mounted on all of them (Filestore, or a bucket by gcsfuse).
set -euo pipefail
name=${1:?name of the TPU VM}
zone=${2:?its zone}
shift 2
printf -v command '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
