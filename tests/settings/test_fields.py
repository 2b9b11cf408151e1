"""Every field of a config is read; a bad value or an old name is refused by the field's name."""

import re

import pytest
from helpers import run_commands

from configs import base
from crnas_jax.arch import zoo
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.settings import (
    architectures,
    data,
    fields,
    models,
    run,
    search,
    supernets,
    training,
)
from crnas_jax.settings.check import check
from crnas_jax.settings.fields import RENAMED
from crnas_jax.training.optimizer import OptimizerOptions

# Valid values other than those of configs/base.py. Fields that are not here are text of any kind,
# or numbers and switches that `_changed` doubles, halves or turns.
OTHER_VALUES = {
    "precision": "bfloat16",
    "baseline": "resnet101",
    "budget": 15.0,
    "widths": (8, 8, 8, 8),
    "network": "baseline",
    "data.name": "voc",
    "data.class_names": ("cell",),
    "data.min_size": 400,
    "detector.kind": "mask_rcnn",
    "detector.neck": "nas_fpn",
    "detector.lowest_level": 2,
    "detector.head": "spinenet",
    "detector.p6_from": "c5",
    "detector.activation": "swish",
    "pretrain.activation": "swish",
    "data.scale_jitter": (0.5, 2.0),
    "supernet.widths": (8, 8, 8, 8),
    "supernet.grids": ((1, 2, 3), (4,), (6,), (3, 4, 5)),
    "supernet.dilations": (1, 2),
    "supernet.depths": "all",
    "supernet.tie": "block",
    "supernet.stage_sharing": "branch",
    "supernet.draws": "uniform",
    "trained_bn": "running",
    "refine.operation_finalists": 3,
    "supernet.kernel_sharing": "shared",
    "pretrain.networks": ("baseline",),
    "pretrain.lr_drops": (0.5,),
    "pretrain.data.name": "synthetic",
    "search.bn": "batch",
    "search.stage_strategy": "racing",
    "search.operation_strategy": "random",
    "search.budgets": (15.0,),
    "search.all_zero": "continue",
    "data.exif": "stored",
    "search.architecture_strategy": "random",
    "space.phases": (("connections",),),
    "space.fixed_parents": "drawn",
    "space.offsets": (0, 1),
    "space.levels": (2, 6),
    "proxy.min_size": 256,
    "proxy.schedule": "cosine",
    "proxy.lr_drops": (0.5,),
    "executor.kind": "local",
    "executor.platform": "cpu",
    **{f"{recipe}.schedule": "cosine" for recipe in training.RECIPES},
    "pretrain.schedule": "step",
}
# Sections and fields of searches of scale-permuted networks.
SCALE_PERMUTED = ("space", "proxy", "controller", "executor")
SCALE_PERMUTED_SEARCH = ("architecture_strategy", "in_flight")
# Fields that count beside another one alone.
TOGETHER_WITH = {
    "detector.stacks": ("detector.neck", "nas_fpn"),
    "detector.lowest_level": ("detector.neck", "nas_fpn"),
    "detector.mask_channels": ("detector.kind", "mask_rcnn"),
    "executor.address": ("executor.kind", "ray"),
    **{
        f"detector.{name}": ("detector.kind", "retinanet")
        for name in ("head", "head_convolutions", "p6_from")
    },
    **{f"search.{name}": ("baseline", "spinenet_seed") for name in SCALE_PERMUTED_SEARCH},
    **{
        f"{section}.stochastic_depth": ("baseline", "spinenet49")
        for section in ("detector", "pretrain")
    },
}
# Fields with a choice of texts; those that name the kind of data are checked as it is opened.
CHOICES = (
    *("precision", "network", "detector.kind", "detector.neck", "pretrain.networks"),
    *("detector.head", "detector.p6_from", "detector.activation", "pretrain.activation"),
    *("supernet.stage_sharing", "supernet.kernel_sharing"),
    *("supernet.depths", "supernet.tie", "supernet.draws", "trained_bn"),
    *("search.bn", "search.stage_strategy", "search.operation_strategy", "search.all_zero"),
    *("data.exif", "search.architecture_strategy", "space.fixed_parents", "proxy.schedule"),
    *("executor.kind", "executor.platform"),
    *(f"{recipe}.schedule" for recipe in training.RECIPES),
)


def _leaves(config, place=""):
    """List dotted names and values of all fields."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


FIELDS = dict(_leaves(base.get_config()))
NUMBERS = [
    name
    for name, value in FIELDS.items()
    if type(value) in (int, float)
    or (isinstance(value, tuple) and name not in ("data.class_names", "pretrain.networks"))
]


def _config(name, value):
    """Return the config with another value of a field."""
    config = base.get_config()
    with config.unlocked():
        if name.partition(".")[0] in SCALE_PERMUTED:
            config.baseline = "spinenet_seed"
        if name in TOGETHER_WITH:
            config.update_from_flattened_dict(dict([TOGETHER_WITH[name]]))
            if config.baseline == "spinenet49":  # nothing is searched
                config.data.val = ""
        before = config.copy_and_resolve_references()
        config.update_from_flattened_dict({name: value})
    return before, config


def _changed(value):
    if isinstance(value, tuple):
        return tuple(map(_changed, value))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value or 1
    return value / 2 or 0.5 if isinstance(value, float) else f"{value}x"


def _readings(config):
    """Return all that the settings make of a config, as text."""
    arch = models.baseline(config)
    readings = [
        run.run_options(config),
        run.pretrained_networks(config),
        run.init_from(config),
        data.data_options(config),
        data.detection_rows(config),
        data.read_options(config),
        data.classification_data_options(config),
        data.classification_rows(config),
        models.detector(config, arch, num_classes=3),
        models.classifier(config, arch, num_classes=3),
        [training.train_options(config, recipe) for recipe in training.RECIPES],
        search.search_options(config),
        search.strategy_options(config),
        search.score_options(config, search.search_options(config).bn),
        run.refine_options(config),
        run.starts_from_stage_supernet(config),
        training.statistics_options(config),
    ]
    if isinstance(arch, ScalePermuted) and config.data.val:
        readings += [
            architectures.space_options(config),
            architectures.proxy_options(config),
            architectures.proposal_options(config),
            architectures.controller_options(config),
            architectures.executor_options(config),
            architectures.worker_options(config),
            training.train_options(config, "proxy"),
        ]
    if isinstance(arch, Arch):
        readings += [
            models.found_arch(config, (1, 1, 1, 1)),
            supernets.stage_supernet(config),
            supernets.operation_supernet(config, arch),
            supernets.stage_spaces(config),
        ]
    return repr(readings)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_reaches_an_options_object(name):
    value = OTHER_VALUES.get(name, _changed(FIELDS[name]))
    before, config = _config(name, value)
    check(config)
    assert _readings(config) != _readings(before)


def _below_zero(value, kind):
    if isinstance(value, tuple):
        return tuple(_below_zero(entry, type(entry)) for entry in value) or (kind(-1),)
    return kind(-1)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_value_out_of_bounds_is_named_by_its_field(name):
    value = FIELDS[name]
    empty_of_floats = name in ("pretrain.lr_drops", "search.budgets")
    kind = float if isinstance(value, float) or empty_of_floats else int
    _, config = _config(name, _below_zero(value, kind))
    with pytest.raises(UserError) as caught:
        check(config)
    assert caught.value.where == "config"
    assert caught.value.field.partition("[")[0] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("widths", (8, 8)),
        ("detector.anchor_sizes", (8.0,)),
        ("supernet.widths", (8, 8)),
        ("supernet.grids", ((1,), (1,))),
        ("operation_train.lr_drops", (0.9, 0.5)),
        ("stage_train.momentum", 1.0),
        ("pretrain.label_smoothing", 1.0),
        ("search.confidence", 1.0),
        ("data.max_size", 700),
    ],
)
def test_a_value_of_another_form_is_named_by_its_field(name, value):
    _, config = _config(name, value)
    with pytest.raises(UserError) as caught:
        check(config)
    assert caught.value.where == "config"
    assert caught.value.field == name


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_is_named_by_its_field(name):
    _, config = _config(name, ("x",) if isinstance(FIELDS[name], tuple) else "x")
    with pytest.raises(UserError, match=f"config: {name}: 'x' is unknown; use '"):
        check(config)


def test_the_defaults_are_the_papers_network():
    config = base.get_config()
    check(config)
    assert models.baseline(config) == zoo.get("resnet50")
    assert supernets.stage_spaces(config)[16.0].count() == 153


def test_options_take_the_fields_of_their_names():
    config = base.get_config()
    config.stage_train.lr_drops = [0.25, 0.5]
    options = fields.read(OptimizerOptions, config, "stage_train", momentum=0.5)
    assert options.lr_drops == (0.25, 0.5)
    assert (options.momentum, options.schedule) == (0.5, "step")
    assert options.weight_decay == pytest.approx(1e-4)
    swapped = {"momentum": "weight_decay"}
    assert fields.read(OptimizerOptions, config, "stage_train", swapped).momentum == 1e-4


def test_a_missing_section_or_field_is_named():
    config = base.get_config()
    with pytest.raises(UserError, match=r"config: data\.none: missing; start from the config of"):
        fields.section(config, "data.none")
    with config.unlocked():
        del config.detector.kind, config.stage_train.momentum
        del config.detector.neck, config.detector.lowest_level, config.detector.post_nms
    with pytest.raises(UserError, match=r"config: detector\.kind: missing; start from"):
        models.detector_kind(config)
    assert training.train_options(config, "stage_train").optimizer.momentum == 0.9
    with config.unlocked():
        config.detector.kind = "faster_rcnn"
    check(config)
    cost = models.detector_cost(config, zoo.get("resnet50"), (64, 64), 80)
    assert cost == models.detector_cost(base.get_config(), zoo.get("resnet50"), (64, 64), 80)


@pytest.mark.parametrize("name", ["search.keep", "initial"])
def test_a_config_of_its_own_with_an_old_name_is_refused(name):
    config = base.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({name: 7})
    old = name.rpartition(".")[2]
    message = f"config: {name}: is now {RENAMED[old]!r}; use the new name"
    with pytest.raises(UserError, match=re.escape(message)):
        check(config)


# Old places of fields, and values they had.
OLD_FIELDS = {
    "data.short": "64",
    "data.long": "64",
    "stage_train.rate_per_image": "0.1",
    "detector_train.drops": "(0.5,)",
    "pretrain.clip": "1.0",
    "initial.baseline": "'none'",
    "search.keep": "3",
    "search.chunk": "3",
}
_OLD_CONFIG = """from configs import quickstart
def get_config():
  config = quickstart.get_config()
  config.{field} = {value}
  return config
"""
RENAMED_CASES = [(kind, field) for kind in ("flag", "file") for field in OLD_FIELDS]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return the outcome of every case, and the folders that were written."""
    tmp, commands = tmp_path_factory.mktemp("renamed"), []
    for index, (kind, field) in enumerate(RENAMED_CASES):
        file, value = "configs/quickstart.py", OLD_FIELDS[field]
        flags = [f"--config.{field}={value}"] if kind == "flag" else []
        if kind == "file":
            file = tmp / f"{field.replace('.', '_')}.py"
            file.write_text(_OLD_CONFIG.format(field=field, value=value))
        workdir = f"--workdir={tmp}/run{index}"
        commands.append(["scripts/run_crnas.py", f"--config={file}", workdir, *flags])
    return dict(zip(RENAMED_CASES, run_commands(commands), strict=True)), list(tmp.glob("run*"))


@pytest.mark.parametrize("case", RENAMED_CASES, ids=" ".join)
def test_an_old_name_ends_in_a_line_with_the_new_one(outcomes, case):
    kind, field = case
    results, written = outcomes
    assert results[case]["status"] == 2, results[case]["stderr"]
    (line,) = results[case]["stderr"].strip().splitlines()
    old = next(name for name in field.split(".") if name in RENAMED)
    where = rf"{field.replace('.', '_')}\.py: line 4" if kind == "file" else "unknown field"
    assert re.search(f"{where}: '{old}' is now '{RENAMED[old]}'", line), line
    assert not written


def test_every_old_name_is_a_case():
    assert {name for field in OLD_FIELDS for name in field.split(".")} >= set(RENAMED)


def test_no_more_codes_are_trained_alone_than_the_search_ends_with():
    config = base.get_config()
    config.refine.operation_finalists = 4
    with pytest.raises(UserError, match=r"refine.operation_finalists: 4, and the search ends with"):
        check(config)
    config.refine.finalists = 0  # then none is trained
    check(config)
