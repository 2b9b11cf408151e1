"""Search the best allocation of the budget; train the stage supernet if need be.

python scripts/search_stage.py --config=configs/bccd.py --workdir=runs/bccd
... --dry_run       evaluations, image passes and device hours, from a short measurement
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("search", "--level=stage")
