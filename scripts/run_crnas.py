"""The whole procedure: labelled images and a budget in, a reallocated detector out.

python scripts/run_crnas.py --config=configs/bccd.py --workdir=runs/bccd
"""

from crnas_jax import cli
from crnas_jax.analysis import report


def main(pipeline):
    print(report.table(pipeline.run()))
    print(f"everything lies in {pipeline.path}; numbers in {pipeline.path / 'result.json'}")


if __name__ == "__main__":
    cli.launch(main, check=lambda settings: settings.require_search())
