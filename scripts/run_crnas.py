"""Run the whole procedure: labelled images and a budget in, a reallocated detector out.

python scripts/run_crnas.py --config=configs/bccd.py --workdir=runs/bccd
"""

from crnas_jax import cli
from crnas_jax.analysis import report
from crnas_jax.experiments import crnas
from crnas_jax.settings.run import require_search


def main(run):
    print(report.table(crnas.run_crnas(run)))
    print(f"all files are in {run.path}; the numbers in {run.path / 'result.json'}")


if __name__ == "__main__":
    cli.launch(main, require_search)
