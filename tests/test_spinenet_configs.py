"""Every recipe of SpineNet: its networks are the published ones, and it traces at full size."""

import re

import jax
import numpy as np
import pytest
from helpers import run_commands

from configs import operations_spinenet, spinenet
from crnas_jax import cli
from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.experiments.spinenet import require_space
from crnas_jax.export import scenic
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.check import check
from crnas_jax.settings.training import train_options
from crnas_jax.training.optimizer import make_schedule

DETECTION = ("a", "b", "c", "mobile", "small")
STAGE_ONLY = ("--network=stage_only",)


def _config(arguments):
    config = spinenet.get_config(arguments)
    config.devices = 1
    check(config)
    return config


@pytest.mark.campaign
@pytest.mark.programs
@pytest.mark.parametrize("arguments", [*spinenet.PROTOCOLS, "c,spinenet190", "b,resnet50"])
def test_every_head_traces_at_full_size(arguments):
    config = _config(arguments)
    arch = model_settings.baseline(config)
    if arguments.partition(",")[0] in DETECTION:
        canvas = data_settings.image_size(config).canvas(portrait=False)
        model = model_settings.detector(config, arch, 80)
        boxes = ((100, 4), np.float32)
    else:
        canvas = (config.pretrain.data.size,) * 2
        model = model_settings.classifier(config, arch, 1000)
        boxes = ((4,), np.float32)
    rows = {
        "image": ((*canvas, 3), np.uint8),
        "image_size": ((2,), np.int32),
        "boxes": boxes,
        "labels": (boxes[0][:-1], np.int32),
        **dict.fromkeys(("valid", "crowd"), (boxes[0][:-1], bool)),
        **dict.fromkeys(("weight", "progress"), ((), np.float32)),
        "label": ((), np.int32),
    }
    batch = {n: jax.ShapeDtypeStruct((2, *shape), kind) for n, (shape, kind) in rows.items()}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    losses, _ = jax.eval_shape(
        lambda v, b, k: model.losses(v, b, None, k), model.shapes, batch, keys
    )
    assert all(loss.shape == () for loss in losses.values())
    outputs = jax.eval_shape(lambda v, b: model.apply(v, b, None), model.shapes, batch)
    assert len(next(iter(outputs.values()))) >= 1


@pytest.mark.parametrize("protocol", spinenet.TARGETS)
def test_targets_name_networks_whose_cost_is_the_published_one(protocol):
    for network in spinenet.TARGETS[protocol]:
        config = _config(f"{protocol},{network}")
        name, side, anchor, giga = spinenet.NETWORKS[network]
        assert config.network == "baseline"
        assert model_settings.baseline(config) == zoo.get(name)
        if protocol in DETECTION:
            canvas = data_settings.image_size(config).canvas(portrait=False)
            assert canvas == (side, side)
            assert config.detector.anchor_sizes[0] == 8 * anchor
            cost = model_settings.detector_cost(config, zoo.get(name), canvas, 91)
            if giga and name != "spinenet49s":  # not what its release builds
                assert cost.flops / 1e9 == pytest.approx(giga, rel=0.02)


def test_schedules_are_the_releases():
    """Protocol c: 231,500 steps, drops at 217,610 and 226,870; the warm-up begins with 0.0067."""
    options = train_options(_config("c"), "detector_train")
    rate = make_schedule(options.optimizer, options.batch_size, 231500)
    values = [rate(step) for step in (0, 2000, 217600, 217620, 226880)]
    np.testing.assert_allclose(values, [0.0067, 0.28, 0.28, 0.028, 0.0028], rtol=1e-3)
    assert (options.epochs, options.optimizer.weight_decay) == (500, 4e-5)
    assert _config("c,spinenet143").detector.stochastic_depth == 0.16
    assert _config("c,spinenet190").detector_train.epochs == 400
    assert _config("a").detector.drop_block == 0.1
    assert _config("imagenet_improved").pretrain.label_smoothing == 0.1


@pytest.mark.parametrize("protocol", spinenet.PROTOCOLS)
def test_every_network_is_accepted_in_every_protocol(protocol, tmp_path):
    file = tmp_path / "found.json"
    file.write_text(zoo.get("spinenet96").to_json())
    for network in (*spinenet.NETWORKS, file):
        config = _config(f"{protocol},{network}")
        is_permuted = model_settings.baseline(config).has_pyramid
        section = config.detector if protocol in DETECTION else config.pretrain
        drops = protocol in ("c", "imagenet_improved", "inaturalist_improved")
        assert (section.stochastic_depth > 0) == (is_permuted and drops), network


def test_commands_refuse_what_needs_stages_in_one_line(tmp_path):
    """All searches, unless the tie says what has a dilation: then those of allocations alone."""
    shared = ["--config.devices=1", f"--workdir={tmp_path / 'run'}"]
    nothing = ["--config=configs/spinenet.py:small", "--config.data.name=synthetic"]
    dilations = ["--config=configs/operations_spinenet.py:quick"]
    refused = {
        "run_crnas": (),
        "search_stage": (),
        "search_operations": (),
        "train_supernet": (),
        "ranking_study": (),
        "compare_strategies": (),
        "train_detector": ("--network=searched",),
        "evaluate": ("--network=returned",),
        "pretrain": (
            "--network=stage_supernet",
            "--config.pretrain.networks=('stage_supernet',)",
            "--config.pretrain.data.name=synthetic",
        ),
    }
    commands = [[f"scripts/{name}.py", *nothing, *shared, *more] for name, more in refused.items()]
    of_stages = ("search_stage", ()), ("compare_strategies", ()), ("train_detector", STAGE_ONLY)
    commands += [[f"scripts/{name}.py", *dilations, *shared, *more] for name, more in of_stages]
    for command, outcome in zip(commands, run_commands(commands), strict=True):
        assert outcome["status"] == 2, command
        (line,) = outcome["stderr"].strip().splitlines()
        assert "has no stages whose blocks could be reallocated" in line
        assert ("set supernet.tie to 'block' or 'level'" in line) == (nothing[0] in command)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="scenic's ResNet has stages"):
        scenic.convert(zoo.get("spinenet49"), {})


def test_the_plan_is_that_of_the_baseline(tmp_path, capsys):
    flags = ["--config=configs/spinenet.py:small", "--config.data.name=synthetic"]
    assert cli.main(["plan", *flags, "--config.devices=1", f"--workdir={tmp_path / 'run'}"]) == 0
    text = capsys.readouterr().out
    assert "spinenet49_quarter 2 + 15 blocks x 1, in a retinanet: 0.6" in text
    assert re.search(r"steps +detector_train: \d+ of 8 images in 50 epochs", text)
    assert not (tmp_path / "run").exists()


def test_the_plan_of_a_search_of_dilations(tmp_path, capsys):
    flags = ["--config=configs/operations_spinenet.py:quick", "--config.devices=1"]
    assert cli.main(["plan", *flags, f"--workdir={tmp_path / 'run'}"]) == 0
    text = capsys.readouterr().out
    assert "dilations   16 codes of dilations, greedy: one of (1, 2) for each level" in text
    parts = re.findall(r"^(?:steps)? +(.*?)  +[\d.]+$", text, re.M)
    assert [part.partition(",")[0] for part in parts] == [
        *("operation supernet", "operation search", "operation search"),
        *("up to 3 finalists", "up to 2 networks with 2 seeds", "statistics"),
    ]
    assert "stage" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", operations_spinenet.SETTINGS)
def test_every_search_of_dilations_is_accepted(setting):
    config = operations_spinenet.get_config(setting)
    config.devices = 1
    config.data.folder = config.data.folder or "data"
    check(config)
    run_settings.require_search(config)
    with pytest.raises(UserError, match="search its dilations alone"):
        run_settings.require_search(config, "stage")
    with pytest.raises(UserError, match=r"supernet\.tie: 'level' asks for a search of dilations"):
        require_space(config)


def test_nothing_is_searched_in_a_network_without_stages_unless_asked_for():
    config = spinenet.get_config("small")
    with pytest.raises(UserError, match="'spinenet49_quarter' has no stages"):
        run_settings.require_search(config)
    config.data.val = "val.json"
    check(config)  # scale-permuted networks may be searched around it
    config.data.val = ""
    config.detector.freeze_at = 3
    with pytest.raises(UserError, match=r"config: detector\.freeze_at: 3, and a scale-permuted"):
        check(config)
    config.detector.update({"freeze_at": 0, "neck": "fpn"})
    with pytest.raises(UserError, match=r"config: detector\.neck: 'fpn', and spinenet puts out a"):
        check(config)


@pytest.mark.parametrize("arguments", ["d", "a,spinenet50", "a,spinenet49,1x", "x.json"])
def test_unknown_arguments_are_refused(arguments):
    with pytest.raises(UserError, match=r"configs/spinenet\.py"):
        spinenet.get_config(arguments)
    with pytest.raises(UserError, match=r"configs/operations_spinenet\.py"):
        operations_spinenet.get_config(arguments)


def test_a_table_in_a_file_is_a_network(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(zoo.get("r0_sp53").to_json())
    assert model_settings.baseline(_config(f"b,{file}")) == zoo.get("r0_sp53")
