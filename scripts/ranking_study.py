"""Compare the stage supernet's scores of subnets with the AP of subnets trained alone.

python scripts/ranking_study.py --config=configs/bccd.py --workdir=runs/bccd --subnets=12 --seeds=2
"""

from absl import flags

from crnas_jax import cli
from crnas_jax.experiments.studies import ranking_study
from crnas_jax.settings.run import require_search

_SUBNETS = flags.DEFINE_integer("subnets", 12, "Number of allocations that are drawn.")
_SEEDS = flags.DEFINE_integer("seeds", 2, "Trainings of each allocation.")
_REPEATS = flags.DEFINE_integer("repeats", 2, "Scorings of each allocation in the supernet.")

if __name__ == "__main__":
    cli.launch(
        lambda run: print(ranking_study(run, _SUBNETS.value, _SEEDS.value, _REPEATS.value)),
        require_search,
    )
