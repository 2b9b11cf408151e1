"""What is saved of a network that was trained alone, by a step of a run or by a worker."""

import pathlib

from jaxtyping import PyTree
from ml_collections import ConfigDict

from crnas_jax.data.coco import category_entries
from crnas_jax.evaluation.bn_statistics import recalibrate
from crnas_jax.export.detector import save_detector
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import training as training_settings
from crnas_jax.training.job import TrainingJob


def save_trained(
    config: ConfigDict, job: TrainingJob, folder: pathlib.Path, variables: PyTree
) -> PyTree:
    """Save a network as `load_detector` reads it, with the statistics that the config asks for.

    Args:
      config: the config.
      job: its training.
      folder: folder that receives it.
      variables: what the training returned.

    Returns:
      The variables as they were saved.
    """
    size, options = data_settings.image_size(config), job.options
    num_images = training_settings.calibration_images(config)
    if num_images:
        batch_size = options.batch_size // options.accumulate
        calibration = (job.source, size, batch_size, num_images, options.seed, options.num_devices)
        variables = recalibrate(job.model, variables, *calibration)
    save_detector(folder, job.model, variables, size, categories(job))
    return variables


def categories(job: TrainingJob) -> list[dict]:
    """Return the categories of a detection training, as COCO lists them."""
    return category_entries(job.source.category_ids, job.source.class_names)
