"""Options of the data: where it lies, how images are resized, what a batch holds."""

from ml_collections import ConfigDict

from crnas_jax.data.build import ClassificationDataOptions, DataOptions, SyntheticOptions
from crnas_jax.data.loader import ReadOptions
from crnas_jax.data.transforms import ClassificationRows, DetectionRows, ImageSize
from crnas_jax.settings.fields import build, read
from crnas_jax.settings.models import has_masks, neck_options


def data_options(config: ConfigDict) -> DataOptions:
    """Read where the detection data lies."""
    synthetic = read(SyntheticOptions, config, "data.synthetic")
    return read(DataOptions, config, "data", synthetic=synthetic)


def read_options(config: ConfigDict) -> ReadOptions:
    """Read how batches are read ahead."""
    return read(ReadOptions, config, "data")


def image_size(config: ConfigDict) -> ImageSize:
    """Read the resize rule; canvases are whole cells of the neck's coarsest level."""
    return read(ImageSize, config, "data", multiple=neck_options(config).coarsest_stride)


def detection_rows(config: ConfigDict) -> DetectionRows:
    """Return the function from a record to a training row for detection."""
    options = data_options(config)
    mask_size = options.mask_size if has_masks(config) else 0
    rows = {"max_objects": options.max_objects, "flip": options.flip, "mask_size": mask_size}
    given = {"size": image_size(config), "scale_jitter": options.scale_jitter}
    return build(DetectionRows, {**rows, **given}, {"scale_jitter": "data.scale_jitter"})


def classification_data_options(config: ConfigDict) -> ClassificationDataOptions:
    """Read where the classification data lies."""
    synthetic = read(SyntheticOptions, config, "pretrain.data.synthetic")
    return read(ClassificationDataOptions, config, "pretrain.data", synthetic=synthetic)


def classification_rows(config: ConfigDict) -> ClassificationRows:
    """Return the function from a record to a training row for classification."""
    return ClassificationRows(classification_data_options(config).size, augment=True)
