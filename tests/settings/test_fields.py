"""Every field of a config reaches the options, and what is out of bounds is named by its place."""

import pytest

from configs import base
from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.settings import data, models, run, search, training
from crnas_jax.settings.check import check

# Another valid value for each field for which twice the number or the opposite will not do.
OTHER_VALUES = {
    "precision": "bfloat16",
    "baseline": "resnet18",
    "widths": (32, 64, 128, 256),
    "network": "baseline",
    "data.name": "voc",
    "data.class_names": ("cell",),
    "data.min_size": 600,
    "data.max_size": 1400,
    "detector.kind": "mask_rcnn",
    "detector.neck": "nas_fpn",
    "detector.lowest_level": 2,
    "detector.freeze_at": 1,
    "supernet.widths": (16, 32, 64, 128),
    "supernet.grids": ((3,), (4,), (6,), (3,)),
    "supernet.dilations": (1, 2),
    "supernet.stage_sharing": "prefix",
    "supernet.kernel_sharing": "shared",
    "pretrain.networks": ("baseline",),
    "pretrain.label_smoothing": 0.1,
    "pretrain.data.name": "synthetic",
    "search.bn": "running",
    "search.stage_strategy": "halving",
    "search.operation_strategy": "random",
    "search.confidence": 0.9,
    "search.budgets": (18,),
    **{
        f"{recipe}.{field}": value
        for recipe in training.RECIPES
        for field, value in (
            ("momentum", 0.8),
            ("schedule", "cosine" if recipe != "pretrain" else "step"),
            ("lr_drops", (0.5,)),
        )
    },
}
# Fields that belong to a neck or a head that the defaults do not have.
NEEDED = {
    "detector.stacks": {"detector.neck": "nas_fpn"},
    "detector.lowest_level": {"detector.neck": "nas_fpn"},
    "detector.mask_channels": {"detector.kind": "mask_rcnn"},
    "data.mask_size": {"detector.kind": "mask_rcnn"},
}


def _fields(config, place=""):
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from _fields(value, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def _set(config, place, value):
    *sections, name = place.split(".")
    for section in sections:
        config = config[section]
    config[name] = value


def _get(config, place):
    for name in place.split("."):
        config = config[name]
    return config


def _options(config):
    """Everything that the settings functions make of a config."""
    arch = models.baseline(config)
    stage_spaces = search.stage_spaces(config)
    return (
        run.run_options(config),
        run.init_from(config),
        run.pretrained_networks(config),
        data.data_options(config),
        data.image_size(config),
        data.detection_rows(config),
        data.classification_data_options(config),
        models.detector(config, arch, 3),
        models.classifier(config, arch, 3),
        models.stage_supernet(config),
        models.operation_supernet(config, arch.depths),
        [training.train_options(config, recipe) for recipe in training.RECIPES],
        search.search_options(config),
        search.strategy_options(config),
        search.score_options(config, search.search_options(config).bn),
        search.budget(config),
        stage_spaces,
    )


FIELDS = tuple(_fields(base.get_config()))


@pytest.mark.parametrize("place", FIELDS)
def test_every_field_changes_an_option(place):
    configs = [base.get_config() for _ in range(2)]
    for config in configs:
        for needed, value in NEEDED.get(place, {}).items():
            _set(config, needed, value)
    before, after = configs
    value = _get(before, place)
    if place in OTHER_VALUES:
        other = OTHER_VALUES[place]
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, str):
        other = f"{value}-other"
    elif isinstance(value, tuple):
        other = tuple(2 * entry for entry in value)
    else:
        other = 2 * value or type(value)(1)
    if place == "budget":
        other = 18.0
    _set(after, place, other)
    assert _options(before) != _options(after)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seed", -1),
        ("bootstrap", 0),
        ("widths", (8, 8)),
        ("data.max_objects", 0),
        ("data.min_size", 0),
        ("data.synthetic.train", 0),
        ("detector.rpn_samples", 0),
        ("detector.roi_samples", 0),
        ("detector.mask_channels", 0),
        ("detector.anchor_sizes", (8.0,)),
        ("detector.neck", "pan"),
        ("supernet.grids", ((1,), (1,))),
        ("supernet.stage_sharing", "x"),
        ("stage_train.epochs", 0.0),
        ("detector_train.lr_per_image", 0.0),
        ("operation_train.lr_drops", (0.9, 0.5)),
        ("pretrain.batch_size", 0),
        ("pretrain.label_smoothing", 1.0),
        ("pretrain.networks", ("neck",)),
        ("search.samples", 0),
        ("search.batches", -1),
        ("search.beam", 0),
        ("search.confidence", 1.0),
        ("search.max_params", -1.0),
    ],
)
def test_a_value_out_of_bounds_is_named_by_its_place(place, value):
    config = base.get_config()
    _set(config, place, value)
    with pytest.raises(UserError) as caught:
        check(config)
    assert caught.value.where == "config"
    assert caught.value.field.partition("[")[0] == place


def test_the_defaults_are_the_papers_network():
    config = base.get_config()
    check(config)
    assert models.baseline(config) == zoo.get("resnet50")
    assert search.stage_spaces(config)[16.0].count() == 153
