"""SpineNet (arXiv 1912.05027): RetinaNet on scale-permuted backbones, and their classifiers.

    python scripts/train_detector.py --config=configs/spinenet.py:c,spinenet49 \
        --workdir=runs/spinenet49_c --network=baseline
    python scripts/evaluate.py --workdir=runs/spinenet49_c --network=baseline
    python scripts/predict.py --detector=runs/spinenet49_c/baseline --images=photos \
        --output=detections.json
    python scripts/pretrain.py --config=configs/spinenet.py:imagenet,spinenet49 \
        --workdir=runs/imagenet_spinenet49 --network=baseline
    python scripts/train_detector.py --config=configs/spinenet.py:small \
        --config.data.folder=DATA --workdir=runs/small --network=baseline    two CPU cores

The argument is PROTOCOL[,NETWORK]. Detectors are trained from scratch on COCO's train2017 and
tested on val2017 (`configs/paper.py` says where the data lie), batches of 256 images:

    a        250 epochs, sizes x 0.8 to 1.2, DropBlock, ReLU
    b        350 epochs, sizes x 0.5 to 2.0, ReLU
    c        500 epochs, sizes x 0.5 to 2.0, stochastic depth, swish
    mobile   600 epochs, sizes x 0.5 to 2.0, swish: the mobile backbones at 384 pixels
    imagenet, imagenet_improved, inaturalist, inaturalist_improved   classification at 224 pixels
    small    a quarter of SpineNet-49's widths at 256 pixels, on any small folder in COCO's format

`NETWORKS` lists the networks with their sizes, costs and what is to be reached (`TARGETS`, COCO AP
or top-1). Where the paper is silent the rules are this project's: DropBlock in a (blocks of 7 x 7
cells at levels 4 and 5, dropping up to 10 % at the end), and the placement of the crops. Expected:
130 GPU hours for b with SpineNet-49, estimated as in `configs/paper.py`.
"""

from configs import base, paper
from crnas_jax.arch import zoo
from crnas_jax.errors import UserError

FILE = "configs/spinenet.py"
# By name: name in the zoo, side of the images, anchors over the stride, multiply-adds of the
# RetinaNet in G as published (the paper's own 49S is not what its release builds: 30.8).
NETWORKS = {
    "spinenet49": ("spinenet49", 640, 3, 85.4),
    "spinenet49_896": ("spinenet49", 896, 3, 167.4),
    "spinenet49s": ("spinenet49s", 640, 3, 33.8),
    "spinenet96": ("spinenet96", 1024, 3, 265.4),
    "spinenet143": ("spinenet143", 1280, 4, 524.0),
    "spinenet143l": ("spinenet143l", 1280, 4, None),
    "spinenet190": ("spinenet190", 1280, 4, 1885.0),
    "r0_sp53": ("r0_sp53", 640, 3, None),
    "r23_sp30": ("r23_sp30", 640, 3, None),
    "resnet50": ("resnet50", 640, 3, 97.0),
    "resnet101": ("resnet101", 1024, 3, 326.3),
    "spinenet49_mobile": ("spinenet49_mobile", 384, 3, 1.0),
    "spinenet49s_mobile": ("spinenet49s_mobile", 384, 3, None),
    "spinenet49xs_mobile": ("spinenet49xs_mobile", 384, 3, None),
    "spinenet49_quarter": ("spinenet49_quarter", 256, 3, None),
}
# Published: AP on val2017 in per cent, or top-1.
TARGETS = {
    "a": {"spinenet49": 40.8, "r0_sp53": 40.7, "r23_sp30": 39.6, "resnet50": 37.8},
    "b": {
        **{"spinenet49s": 39.5, "spinenet49": 42.8, "spinenet49_896": 45.3, "spinenet96": 46.7},
        **{"spinenet143": 48.0, "resnet50": 40.4, "resnet101": 43.9},
    },
    "c": {
        **{"spinenet49s": 41.5, "spinenet49": 44.3, "spinenet96": 48.5, "spinenet143": 50.6},
        "spinenet190": 52.0,
    },
    "mobile": {"spinenet49_mobile": 28.6},
    "imagenet": {"spinenet49": 77.0, "spinenet96": 78.2, "spinenet143": 79.0},
    "imagenet_improved": {
        **{"spinenet49": 78.1, "spinenet96": 79.4, "spinenet143": 80.1, "spinenet190": 80.8},
    },
    "inaturalist": {"spinenet49": 59.3, "spinenet96": 61.7, "spinenet143": 63.6},
    "inaturalist_improved": {
        **{"spinenet49": 63.3, "spinenet96": 64.7, "spinenet143": 66.7, "spinenet190": 67.6},
    },
}
PROTOCOLS = ("b", "a", "c", "mobile", *list(TARGETS)[4:], "small")
_EPOCHS = {"a": 250, "b": 350, "c": 500, "mobile": 600}
_JITTER = {"a": (0.8, 1.2), "b": (0.5, 2.0), "c": (0.5, 2.0), "mobile": (0.5, 2.0)}


def get_config(arguments: str = ""):
    """Return the recipe of `PROTOCOL[,NETWORK]`."""
    protocol, *rest = [argument for argument in arguments.split(",") if argument] or ["b"]
    if protocol not in PROTOCOLS:
        raise UserError(FILE, "argument", f"{protocol!r} is unknown", f"use one of {PROTOCOLS}")
    default = {"mobile": "spinenet49_mobile", "small": "spinenet49_quarter"}.get(protocol)
    names = tuple(dict.fromkeys((default or "spinenet49", *NETWORKS)))
    (network,) = paper.arguments(FILE, ",".join(rest), names)
    if network in NETWORKS:
        baseline, side, anchor, _ = NETWORKS[network]
    else:  # a file with an architecture
        baseline, side, anchor = network, 640, 3
    if protocol == "small":
        return _small(baseline)
    if protocol in _EPOCHS:
        return _detection(protocol, baseline, side, anchor)
    return _classification(protocol, baseline)


def _detection(protocol, baseline, side, anchor):
    is_190 = protocol == "c" and baseline == "spinenet190"
    epochs = 400 if is_190 else _EPOCHS[protocol]
    config = paper.detection(baseline, "1x")
    rate = 0.3 if is_190 else 0.28
    config.trained_bn = "auto"  # batches of 256 images: the running averages
    config.init_from.baseline = ""
    _retinanet(config, side, anchor)
    config.data.scale_jitter = _JITTER[protocol]
    config.detector.update({"bn_momentum": 0.99, "bn_epsilon": 1e-3})
    config.detector_train.update(
        {
            **{"epochs": float(epochs), "batch_size": 256, "lr_per_image": rate / 256},
            # A tenth in the last 30 epochs, a hundredth in the last 10.
            "lr_drops": (1 - 30 / epochs, 1 - 10 / epochs),
            **{"weight_decay": 4e-5, "decay_kernels_only": True, "clip_norm": 10.0},
            **{"warmup_steps": 2000, "warmup_start": 0.0067 / rate},
        }
    )
    if protocol == "a":
        config.detector.update({"activation": "relu", "drop_block": 0.1, "drop_block_size": 7})
    elif protocol == "b":
        config.detector.activation = "relu"
    elif protocol == "mobile":
        config.detector.activation = "swish"
        config.detector_train.update({"weight_decay": 3e-5, "lr_drops": (0.95, 0.983)})
    else:
        config.detector.update(
            {"activation": "swish", "stochastic_depth": _stochastic_depth(baseline)}
        )
    if protocol == "c" and baseline in ("spinenet143", "spinenet190"):
        config.data.scale_jitter = (0.1, 1.9)
    return config


def _stochastic_depth(baseline):
    """Return the rate; a network of stages has no permuted blocks."""
    if not zoo.find(baseline).has_pyramid:
        return 0.0
    return 0.16 if baseline == "spinenet143" else 0.2


def _retinanet(config, side, anchor):
    """Set SpineNet's RetinaNet on a square canvas; anchors are `anchor` strides."""
    config.data.min_size = config.data.max_size = side
    config.detector.update({"kind": "retinanet", "head": "spinenet"})
    config.detector.anchor_sizes = tuple(float(anchor * 2**level) for level in range(3, 8))


def _classification(protocol, baseline):
    config = base.get_config()
    config.network, config.baseline = "baseline", baseline
    config.precision = "bfloat16"
    config.data.name, config.data.val = "none", ""
    data, _, improved = protocol.partition("_")
    config.pretrain.networks = ("baseline",)
    config.pretrain.data.folder = f"data/{data}"
    config.pretrain.update(
        {
            **{"epochs": 200.0, "batch_size": 4096, "lr_per_image": 1.6 / 4096},
            **{"warmup_steps": 1564, "weight_decay": 1e-4, "decay_kernels_only": True},
            "activation": "swish" if improved else "relu",
        }
    )
    if improved:
        rate = 0.2 if zoo.find(baseline).has_pyramid else 0.0
        config.pretrain.update({"stochastic_depth": rate, "label_smoothing": 0.1})
    return config


def _small(baseline):
    config = base.get_config()
    config.network, config.baseline = "baseline", baseline
    config.data.folder = ""  # yours: --config.data.folder=DATA
    config.data.val = ""  # it is not searched
    config.data.max_objects = 32
    _retinanet(config, 256, 3)
    config.detector.pyramid_channels = 64  # where the backbone brings no pyramid
    config.detector.head_convolutions = 2
    config.data.scale_jitter = (0.8, 1.2)
    config.detector_train.update(
        {
            **{"epochs": 50.0, "batch_size": 8, "lr_per_image": 0.0025, "schedule": "cosine"},
            **{"warmup_steps": 100, "clip_norm": 10.0, "weight_decay": 4e-5},
            "decay_kernels_only": True,
        }
    )
    config.search.batch_size = 8  # images that are evaluated at once
    return config
