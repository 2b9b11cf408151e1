"""The search strategies beside each other on one config's supernets.

python scripts/compare_strategies.py --config=configs/bccd.py --workdir=runs/bccd --seeds=3
... --levels=stage       of one search only
"""

import json

from absl import flags

from crnas_jax import cli
from crnas_jax.experiments.studies import LEVELS, strategy_study

_SEEDS = flags.DEFINE_integer("seeds", 3, "Of the searches.", lower_bound=1)
_LEVELS = flags.DEFINE_multi_enum("levels", LEVELS, LEVELS, "Which searches.")


def main(pipeline):
    print(json.dumps(strategy_study(pipeline, _SEEDS.value, _LEVELS.value), indent=1))


if __name__ == "__main__":
    cli.launch(main, check=lambda settings: settings.require_search())
