"""The whole procedure: labelled images and a budget in, a reallocated detector out.

python scripts/run_crnas.py --config=configs/bccd.py --workdir=runs/bccd
"""

from crnas_jax import command
from crnas_jax.pipeline import table


def main(pipeline):
    print(table(pipeline.run()))
    print(f"everything lies in {pipeline.workdir}; numbers in {pipeline.workdir / 'result.json'}")


if __name__ == "__main__":
    command.launch(main)
