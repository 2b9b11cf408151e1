"""Trains a supernet, the found network or the baseline on classification: a start for detection.

python scripts/pretrain.py --config=configs/quickstart.py:pretrain --workdir=runs/pretrained \
    --network=stage_supernet

`config.pretrain.networks` names those that the detection trainings of the same folder start from.
"""

from absl import flags

from crnas_jax import cli
from crnas_jax.settings.run import NETWORKS

_NETWORK = flags.DEFINE_enum(
    "network",
    "stage_supernet",
    NETWORKS,
    "Which network.",
)


if __name__ == "__main__":
    cli.launch(
        lambda pipeline: print(pipeline.pretrain(_NETWORK.value)),
        check=lambda settings: settings.require_pretraining(_NETWORK.value),
    )
