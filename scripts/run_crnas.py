"""Run the whole procedure: labelled images and a budget in, a reallocated detector out.

python scripts/run_crnas.py --config=configs/bccd.py --workdir=runs/bccd
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("run")
