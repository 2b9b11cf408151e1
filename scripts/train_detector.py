"""Train the searched network or the baseline, both under one recipe.

python scripts/train_detector.py --config=configs/bccd.py --workdir=runs/bccd --network=baseline
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("train-detector")
