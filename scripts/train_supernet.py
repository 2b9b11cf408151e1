"""Train the supernet of allocations, or (--level=operation) the supernet of dilations.

python scripts/train_supernet.py --config=configs/bccd.py --workdir=runs/bccd [--level=operation]
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("train-supernet")
