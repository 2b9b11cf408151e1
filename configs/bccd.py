"""Blood cells (BCCD, 364 photographs of 640 x 480, 3 classes): the whole procedure on real images.

    python scripts/run_crnas.py --config=configs/bccd.py --workdir=runs/bccd \
        --config.data.folder=DATA       two CPU cores, one to two hours
    ... --config=configs/bccd.py:gpu    480 x 640, standard widths, the paper's grid

DATA is a folder with `images/`, `train.json`, `val.json` and `test.json`, of any data set in
COCO's format. The results are in `docs/results.md`.
"""

from configs import base
from configs.quickstart import small_detector
from crnas_jax.errors import UserError


def get_config(device: str = "cpu"):
    """Return the config for two CPU cores ("cpu") or for the full size ("gpu")."""
    config = base.get_config()
    config.baseline = "resnet18"
    config.data.folder = ""  # yours: --config.data.folder=DATA
    config.data.max_objects = 32
    recipes = (config.stage_train, config.operation_train, config.detector_train)
    for recipe in recipes:
        recipe.update(
            {"schedule": "cosine", "batch_size": 8, "lr_per_image": 0.0025, "warmup_steps": 100}
        )
    if device == "gpu":
        config.data.min_size, config.data.max_size = 480, 640
        config.detector.anchor_sizes = (16.0, 32.0, 64.0, 128.0, 256.0)
        config.detector.canonical_size = 112.0
        for recipe, epochs in zip(recipes, (120.0, 120.0, 80.0), strict=True):
            recipe.epochs = epochs
        return config
    if device != "cpu":
        raise UserError("configs/bccd.py", "device", device, "use cpu or gpu")
    config.data.min_size, config.data.max_size = 192, 256
    config.widths = config.supernet.widths = (32, 64, 128, 256)
    config.supernet.grids = ((1, 2, 3), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4))
    small_detector(config, anchor=16.0, canonical_size=112.0)
    for recipe, epochs in zip(recipes, (16.0, 8.0, 18.0), strict=True):
        recipe.epochs = epochs
    config.search.batch_size = 8
    config.search.calibration_images = 64
    return config
