"""Train the supernet of allocations, or (--level=operation) the supernet of dilations.

python scripts/train_supernet.py --config=configs/bccd.py --workdir=runs/bccd [--level=operation]
"""

from absl import flags

from crnas_jax import cli
from crnas_jax.experiments import crnas
from crnas_jax.settings.run import require_detection

_LEVEL = flags.DEFINE_enum("level", "stage", ["stage", "operation"], "Which supernet.")


if __name__ == "__main__":
    cli.launch(
        lambda run: crnas.train_supernet(run, _LEVEL.value),
        lambda config: require_detection(config, f"{_LEVEL.value}_supernet"),
    )
