"""SpineNet's search (arXiv 1912.05027, section 3): scale-permuted networks, found by training many.

    python scripts/run_spinenet.py --config=configs/search_spinenet.py:quick --workdir=runs/quick
    ... --config=configs/search_spinenet.py:laptop --config.data.folder=DATA --workdir=runs/laptop
    ... --config=configs/search_spinenet.py:gpu --config.data.folder=DATA --workdir=runs/gpu
    ... --config=configs/search_spinenet.py:paper --config.executor.kind=ray \
        --config.executor.address=HEAD:6379 --workdir=/shared/paper             many machines

Candidates are trained on a proxy task, the best of them and the seed network (the baseline) alone
with the final recipe, and `val` decides which is returned.

    quick    generated images, six candidates of eight blocks, two CPU cores, about 15 minutes
    laptop   eight blocks at 192 x 256, 32 candidates: any small folder in COCO's format
    gpu      fifteen blocks at 320 pixels, 300 candidates, one GPU: a folder in COCO's format
    paper    the paper's: 14,000 candidates on COCO at 512 pixels, REINFORCE, SpineNet-49's blocks

`paper` needs `val` split off train2017 and left out of training, 7,392 images by a fixed rule:

    python scripts/split_coco.py --annotations=data/coco/annotations/instances_train2017.json \
        --number=7392

The paper is silent about the proxy's batch and rate, and about the controller; which rules are
this project's is in docs/spinenet_search.md. The other settings take evolution, which finds more
with few candidates.
"""

from configs import base, spinenet
from crnas_jax.errors import UserError

FILE = "configs/search_spinenet.py"
SETTINGS = ("quick", "laptop", "gpu", "paper")


def get_config(setting: str = "laptop"):
    """Return one of `SETTINGS`."""
    if setting not in SETTINGS:
        raise UserError(FILE, "argument", f"{setting!r} is unknown", f"use one of {SETTINGS}")
    config = _paper() if setting == "paper" else _small(setting)
    return config.lock()


def _paper():
    config = spinenet.get_config("b,spinenet49")
    config.unlock()
    config.baseline = "spinenet_seed"
    config.data.train, config.data.val = "annotations/archtrain.json", "annotations/archval.json"
    config.data.train_images = config.data.val_images = "train2017"
    # 14,000 proposals, each drawn while 100 others are trained.
    config.search.update({"architecture_strategy": "reinforce", "evaluations": 14000})
    config.search.in_flight = 100
    config.proxy.update(
        {
            **{"epochs": 5.0, "batch_size": 64, "lr_per_image": 0.08 / 64, "lr_drops": (4 / 5,)},
            **{"warmup_steps": 500, "clip_norm": 10.0, "weight_decay": 4e-5},
            "decay_kernels_only": True,
        }
    )
    config.refine.finalists = 4
    return config


def _small(setting):
    config = base.get_config()
    config.unlock()
    is_gpu, is_quick = setting == "gpu", setting == "quick"
    config.baseline = "spinenet_seed" if is_gpu else "spinenet_seed8"
    config.data.folder = ""  # yours: --config.data.folder=DATA
    config.data.max_objects = 8 if is_quick else 32
    config.detector.update({"kind": "retinanet", "head": "spinenet"})
    config.detector.head_convolutions = 4 if is_gpu else 2
    recipe = {
        **{"schedule": "cosine", "warmup_steps": 100, "clip_norm": 10.0, "weight_decay": 4e-5},
        "decay_kernels_only": True,
    }
    for section in (config.proxy, config.detector_train):
        section.update(recipe)
        section.update(
            {"batch_size": 16 if is_gpu else 4, "lr_per_image": 0.0025 if is_gpu else 0.005}
        )
    config.search.update({"in_flight": 2, "population": 8, "parents": 4})
    if is_gpu:
        config.precision = "bfloat16"
        config.data.min_size = config.data.max_size = 640
        config.proxy.min_size = config.proxy.max_size = 320
        config.detector.anchor_sizes = (24.0, 48.0, 96.0, 192.0, 384.0)
        config.proxy.epochs, config.detector_train.epochs = 20.0, 120.0
        config.search.update({"evaluations": 300, "population": 20, "parents": 10, "in_flight": 4})
        config.executor.per_device = 4
        return config
    config.space.levels = (2, 5)
    config.proxy.update({"width_scale": 0.125, "alpha": 0.25, "endpoint_channels": 32})
    config.search.batch_size = 8
    config.trained_bn_images = 64
    if is_quick:
        config.data.name = "synthetic"
        config.data.synthetic = {"size": 96, "train": 320, "val": 64, "test": 128}
        config.data.min_size = config.data.max_size = 96
        config.proxy.min_size = config.proxy.max_size = 96
        config.detector.anchor_sizes = (16.0, 32.0, 64.0)
        config.proxy.epochs, config.detector_train.epochs = 2.0, 3.0
        config.search.update({"evaluations": 6, "population": 3, "parents": 2})
        config.refine.finalists = 2
        config.erf_images = 2
    else:
        config.data.min_size, config.data.max_size = 192, 256
        config.proxy.min_size, config.proxy.max_size = 192, 256
        config.detector.anchor_sizes = (24.0, 48.0, 96.0)
        config.proxy.epochs, config.detector_train.epochs = 3.95, 11.8
        config.search.evaluations = 32
        config.refine.finalists = 2
    return config
