"""Search the best dilations; run the steps before if need be.

python scripts/search_operations.py --config=configs/bccd.py --workdir=runs/bccd
... --dry_run       evaluations, image passes and device hours, from a short measurement
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("search", "--level=operation")
