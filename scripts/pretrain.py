"""Train a supernet, the searched network or the baseline on classification before detection.

python scripts/pretrain.py --config=configs/quickstart.py:pretrain --workdir=runs/pretrained \
    --network=stage_supernet

`config.pretrain.networks` names those that the detection trainings of the same folder start from.
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("pretrain")
