"""Compare the search strategies on one config's supernets.

python scripts/compare_strategies.py --config=configs/bccd.py --workdir=runs/bccd --seeds=3
... --levels=stage       one search only
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("compare-strategies")
