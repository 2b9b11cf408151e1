"""Train a supernet, the searched network or the baseline on classification before detection.

python scripts/pretrain.py --config=configs/quickstart.py:pretrain --workdir=runs/pretrained \
    --network=stage_supernet

`config.pretrain.networks` names those that the detection trainings of the same folder start from.
"""

from absl import flags

from crnas_jax import cli
from crnas_jax.experiments import crnas
from crnas_jax.settings.run import NETWORKS, require_pretraining

_NETWORK = flags.DEFINE_enum("network", "stage_supernet", NETWORKS, "Which network.")


if __name__ == "__main__":
    cli.launch(
        lambda run: print(crnas.pretrain(run, _NETWORK.value)),
        lambda config: require_pretraining(config, _NETWORK.value),
    )
