"""What the recipes of the paper share: COCO and ImageNet where they lie, its schedules.

Data are looked for where the data sets' own archives unpack:

    data/coco/{train2017,val2017}/*.jpg    data/coco/annotations/instances_{train,val}2017.json
    data/coco/annotations/arch{train,val}.json    (scripts/split_coco.py)
    data/imagenet/{train,val}/<class>/*    data/VOCdevkit/VOC{2007,2012}/...

GPU hours in the recipes are estimates, never measured: 6 operations for each multiply-add of the
detector and image, at 20 % of an H100's dense bf16 peak. At 800 x 1333 a ResNet-50 has about 0.21 T
multiply-adds; a ResNet-101 takes 1.35 times as long, a ResNet-18 0.75, a MobileNetV2 0.6.
"""

from configs import base
from crnas_jax.arch import zoo
from crnas_jax.errors import UserError

# Epochs, and after which the rate falls to a tenth (paper, section 4).
SCHEDULES = {
    "1x": (13, (8, 11)),
    "2x": (25, (16, 22)),
    "20e": (20, (16, 19)),
    "18e": (18, (15, 17)),
}


def arguments(file: str, text: str, *choices: tuple[str, ...]) -> list[str]:
    """Split the comma-separated arguments of a config; one left out is the first of its choices.

    Args:
      file: path of the config, for the message.
      text: text after the colon.
      choices: allowed values of each argument; the first, the network, may also be a `.json` file
        with an `Arch`.

    Raises:
      UserError: there are too many, or one is unknown.
    """
    given = [argument for argument in text.split(",") if argument]
    if len(given) > len(choices):
        raise UserError(file, "argument", text, f"give at most {len(choices)}")
    values = [*given, *(allowed[0] for allowed in choices[len(given) :])]
    for place, (value, allowed) in enumerate(zip(values, choices, strict=True)):
        if value not in allowed and (place or not value.endswith(".json")):
            raise UserError(file, "argument", f"{value!r} is unknown", f"use one of {allowed}")
    return values


def networks(first: str) -> tuple[str, ...]:
    """Return the names in the zoo, the default first."""
    return (first, *(name for name in zoo.ARCHS if name != first))


def recipe(fields, schedule: str) -> None:
    """Set the epochs and learning rate drops of a recipe."""
    epochs, drops = SCHEDULES[schedule]
    fields.epochs = float(epochs)
    fields.lr_drops = tuple(drop / epochs for drop in drops)


def as_published(config) -> None:
    """Set the paper's own procedure: how supernets share and draw, and nothing after the searches.

    The found network is returned unexamined, and batch statistics are running averages.
    """
    config.supernet.update(
        {"depths": "all", "tie": "block", "stage_sharing": "branch", "draws": "uniform"}
    )
    config.init_from.operation_supernet = ""
    config.search.rescore = False
    config.refine.finalists = 0
    config.trained_bn = "running"


def detection(network: str, schedule: str):
    """Return the training of one network on COCO's trainval35k (train2017), tested on minival.

    It starts from its ImageNet weights, which `configs/imagenet.py` trains: in
    `runs/imagenet_NETWORK`, and for a network in a file `FOLDER/NAME.json` in
    `FOLDER/imagenet_NAME`.
    """
    config = base.get_config()
    as_published(config)
    config.network, config.baseline = "baseline", network
    config.precision = "bfloat16"
    annotations = "annotations/instances_{}2017.json"
    config.data.train, config.data.train_images = annotations.format("train"), "train2017"
    config.data.val = ""
    config.data.test, config.data.test_images = annotations.format("val"), "val2017"
    folder, _, name = network.removesuffix(".json").rpartition("/")
    config.init_from.baseline = f"{folder or 'runs'}/imagenet_{name}/baseline/pretrain"
    recipe(config.detector_train, schedule)
    return config
