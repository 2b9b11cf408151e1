"""Options of the trainings."""

from ml_collections import ConfigDict

from crnas_jax.errors import UserError
from crnas_jax.parallel.mesh import make_mesh
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
# Fewer images in a normalised mini-batch than this give poor running averages.
_FEW_IMAGES = 16
RECIPES = (*dict.fromkeys(RECIPE_OF.values()), "pretrain")


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
    )


def recalibrates(config: ConfigDict) -> bool:
    """Return whether networks that are trained alone get statistics from training images.

    Training normalises over a part of the global batch, whatever the number of devices.
    """
    options, bn = train_options(config, "detector_train"), run_options(config).trained_bn
    few = options.batch_size // options.accumulate < _FEW_IMAGES
    return bn == "recalibrate" or (bn == "auto" and few)


def require_devices(config: ConfigDict, recipe: str) -> None:
    """Raise UserError unless the devices can share a recipe's batches evenly."""
    options = train_options(config, recipe)
    require_even_batches(config, recipe, options.batch_size, options.accumulate)


def require_even_batches(
    config: ConfigDict, place: str, batch_size: int, num_parts: int = 1
) -> None:
    """Raise UserError about a section unless the devices can share its batches evenly."""
    try:
        make_mesh(batch_size, run_options(config).num_devices, num_parts)
    except UserError as error:
        field = error.field if error.field == "devices" else f"{place}.{error.field}"
        raise UserError("config", field, error.problem, error.remedy) from error
