"""Compare the search strategies on one config's supernets.

python scripts/compare_strategies.py --config=configs/bccd.py --workdir=runs/bccd --seeds=3
... --levels=stage       one search only
"""

import json

from absl import flags

from crnas_jax import cli
from crnas_jax.experiments.studies import LEVELS, strategy_study
from crnas_jax.settings.run import require_search

_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds of the searches.", lower_bound=1)
_LEVELS = flags.DEFINE_multi_enum("levels", LEVELS, LEVELS, "Which searches.")


def main(run):
    print(json.dumps(strategy_study(run, _SEEDS.value, _LEVELS.value), indent=1))


if __name__ == "__main__":
    cli.launch(main, require_search)
