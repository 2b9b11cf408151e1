"""Trains a supernet: of allocations, or (--level=operation) of dilations.

python scripts/train_supernet.py --config=configs/bccd.py --workdir=runs/bccd [--level=operation]
"""

from absl import flags

from crnas_jax import cli

_LEVEL = flags.DEFINE_enum("level", "stage", ["stage", "operation"], "Which supernet.")


if __name__ == "__main__":
    cli.launch(
        lambda pipeline: pipeline.train(f"{_LEVEL.value}_supernet"),
        check=lambda settings: settings.require_detection(f"{_LEVEL.value}_supernet"),
    )
