"""The whole procedure on generated images, about 15 minutes on two CPU cores: `make quickstart`.

`configs/quickstart.py:pretrain` has every network classify generated images first.
"""

from configs import base
from crnas_jax.errors import UserError


def get_config(start: str = "scratch"):
    """Return a narrow ResNet-18 on 96-pixel images: it shows that everything runs, no more.

    Args:
      start: "scratch" or "pretrain".
    """
    config = base.get_config()
    config.baseline = "resnet18"
    config.devices = 1  # more cannot share such small batches
    config.widths = config.supernet.widths = (16, 32, 64, 128)
    config.supernet.grids = ((1, 2, 3), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4))
    config.supernet.dilations = (1, 2)
    config.data.name = "synthetic"
    config.data.synthetic = {"size": 96, "train": 320, "val": 96, "test": 192}
    config.data.min_size = config.data.max_size = 96
    config.data.max_objects = 8
    small_detector(config, anchor=8.0, canonical_size=56.0)
    for recipe in (config.stage_train, config.operation_train, config.detector_train):
        # Small batches at a high rate: the most that so short a training learns.
        recipe.update({"batch_size": 4, "lr_per_image": 0.01, "warmup_steps": 50})
        recipe.schedule = "cosine"
    config.stage_train.epochs, config.operation_train.epochs = 6.0, 3.0
    config.detector_train.epochs = 5.0
    config.search.batch_size = 16
    config.search.calibration_images = 64
    config.trained_bn_images = 64
    config.refine.finalists = 2
    config.refine.operation_finalists = 0
    if start not in ("scratch", "pretrain"):
        raise UserError("configs/quickstart.py", "start", start, "use scratch or pretrain")
    if start == "pretrain":
        config.pretrain.networks = tuple(config.init_from)
    config.pretrain.data.name = "synthetic"
    config.pretrain.data.size = 64
    config.pretrain.update(
        {"epochs": 4.0, "batch_size": 32, "lr_per_image": 0.0025, "warmup_steps": 20}
    )
    return config


def small_detector(config, anchor: float, canonical_size: float):
    """Set narrow neck and heads and few proposals, for a CPU.

    Args:
      config: config to change.
      anchor: anchor side on p2, pixels.
      canonical_size: an RoI of this side is read from p4, pixels.
    """
    config.detector.pyramid_channels = 64
    config.detector.head_channels = 256
    config.detector.anchor_sizes = tuple(anchor * 2**level for level in range(5))
    config.detector.canonical_size = canonical_size
    config.detector.rpn_samples = 128
    config.detector.pre_nms = (300, 200)
    config.detector.post_nms = (200, 100)
    config.detector.roi_samples = 64
    config.detector.nms_candidates = 300
