"""Options of the trainings."""

import dataclasses

from ml_collections import ConfigDict

from crnas_jax.errors import UserError
from crnas_jax.parallel.mesh import make_mesh
from crnas_jax.runtime.options import check_choice, check_counts
from crnas_jax.settings.fields import read
from crnas_jax.settings.run import COMPARED, run_options
from crnas_jax.training.job import TrainOptions
from crnas_jax.training.optimizer import OptimizerOptions

# The section of the config that trains each network on detection.
RECIPE_OF = {
    "stage_supernet": "stage_train",
    "operation_supernet": "operation_train",
    **dict.fromkeys(COMPARED, "detector_train"),
}
# Statistics of networks that are trained alone: the running averages of training; recalibrated on
# training images; or these where training normalises over few images.
TRAINED_BN = ("auto", "recalibrate", "running")
# Fewer images in a normalised mini-batch than this give poor running averages.
_FEW_IMAGES = 16
RECIPES = (*dict.fromkeys(RECIPE_OF.values()), "pretrain")


@dataclasses.dataclass(frozen=True)
class StatisticsOptions:
    """Batch statistics of finished networks.

    Attributes:
      trained_bn: one of `TRAINED_BN`.
      trained_bn_images: training images that they are recalibrated on.
    """

    trained_bn: str = "auto"
    trained_bn_images: int = 512

    def __post_init__(self):
        check_counts(self, "trained_bn_images")
        check_choice(self, "trained_bn", TRAINED_BN)


def train_options(config: ConfigDict, recipe: str) -> TrainOptions:
    """Read one of `RECIPES`."""
    run = run_options(config)
    return read(
        TrainOptions,
        config,
        recipe,
        optimizer=read(OptimizerOptions, config, recipe),
        seed=run.seed,
        num_devices=run.num_devices,
        fsdp=run.fsdp,
        profile=run.profile,
    )


def calibration_images(config: ConfigDict) -> int:
    """Return how many images networks that are trained alone get their statistics from.

    0 leaves them the running averages. Training normalises over a part of the global batch,
    whatever the number of devices.
    """
    options, statistics = train_options(config, "detector_train"), statistics_options(config)
    few = options.batch_size // options.accumulate < _FEW_IMAGES
    if statistics.trained_bn == "running" or (statistics.trained_bn == "auto" and not few):
        return 0
    return statistics.trained_bn_images


def statistics_options(config: ConfigDict) -> StatisticsOptions:
    """Read the batch statistics of finished networks."""
    return read(StatisticsOptions, config, "")


def require_devices(config: ConfigDict, recipe: str) -> None:
    """Raise UserError unless the devices can share a recipe's batches evenly."""
    options = train_options(config, recipe)
    require_even_batches(config, recipe, options.batch_size, options.accumulate)


def require_even_batches(
    config: ConfigDict, place: str, batch_size: int, num_parts: int = 1
) -> None:
    """Raise UserError about a section unless the devices can share its batches evenly."""
    try:
        run = run_options(config)
        make_mesh(batch_size, run.num_devices, num_parts, run.fsdp)
    except UserError as error:
        field = error.field if error.field in ("devices", "fsdp") else f"{place}.{error.field}"
        raise UserError("config", field, error.problem, error.remedy) from error
