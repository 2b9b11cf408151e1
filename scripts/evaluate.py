"""Test metrics of the found network or the baseline; trains it if need be.

python scripts/evaluate.py --config=configs/bccd.py --workdir=runs/bccd --network=baseline
"""

from absl import flags

from crnas_jax import cli
from crnas_jax.settings.run import COMPARED

_NETWORK = flags.DEFINE_enum("network", None, COMPARED, "Which; config.network when not given.")


def network(settings):
    return _NETWORK.value or settings.config.network


if __name__ == "__main__":
    cli.launch(
        lambda pipeline: print(pipeline.evaluate(network(pipeline.settings))),
        check=lambda settings: settings.require_detection(network(settings)),
    )
