"""Train the searched network or the baseline, both under one recipe.

python scripts/train_detector.py --config=configs/bccd.py --workdir=runs/bccd --network=baseline
"""

from absl import flags

from crnas_jax import cli
from crnas_jax.experiments import crnas
from crnas_jax.settings.run import COMPARED, require_detection

_NETWORK = flags.DEFINE_enum("network", None, COMPARED, "Network; config.network by default.")


def network(config):
    return _NETWORK.value or config.network


if __name__ == "__main__":
    cli.launch(
        lambda run: crnas.train_network(run, network(run.config)),
        lambda config: require_detection(config, network(config)),
    )
