"""Evaluate the searched network or the baseline on the test split; train it if need be.

python scripts/evaluate.py --config=configs/bccd.py --workdir=runs/bccd --network=baseline
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("evaluate")
