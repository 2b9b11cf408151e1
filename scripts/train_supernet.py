"""Trains a supernet: of allocations, or (--level=operation) of dilations.

python scripts/train_supernet.py --config=configs/bccd.py --workdir=runs/bccd [--level=operation]
"""

from absl import flags

from crnas_jax import command

_LEVEL = flags.DEFINE_enum("level", "stage", ["stage", "operation"], "Which supernet.")


def main(pipeline):
    if _LEVEL.value == "stage":
        pipeline.train_stage_supernet()
    else:
        pipeline.train_operation_supernet()


if __name__ == "__main__":
    command.launch(main)
