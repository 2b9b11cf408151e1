"""Search a scale-permuted network (SpineNet), and return it if it is better than the seed network.

python scripts/run_spinenet.py --config=configs/search_spinenet.py:laptop --workdir=runs/spinenet
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("run-spinenet")
