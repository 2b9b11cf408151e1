"""torchvision's weights converted by the script, in networks and supernets, and what is refused."""

import json

import jax
import numpy as np
import pytest
import torch
from helpers import run_commands
from interop import torchvision_reference as reference
from safetensors.numpy import save_file

import crnas_jax
from crnas_jax.arch import zoo
from crnas_jax.checkpoint import load_variables
from crnas_jax.errors import UserError
from crnas_jax.export.weights import load_weights
from crnas_jax.interop import torchvision
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.models.transfer import fill

# Old names of some tensors by their present ones.
OLD_NAMES = {
    "backbone.fpn.inner_blocks.0.0.weight": "backbone.fpn.inner_blocks.0.weight",
    "backbone.fpn.layer_blocks.3.0.bias": "backbone.fpn.layer_blocks.3.bias",
    "rpn.head.conv.0.0.weight": "rpn.head.conv.weight",
    "rpn.head.conv.0.0.bias": "rpn.head.conv.bias",
    "roi_heads.mask_head.2.0.weight": "roi_heads.mask_head.mask_fcn3.weight",
}


def _state(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def resnet18():
    return _state(reference.classifier("resnet18", seed=0))


def _zeros(model):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.shapes)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Outcomes of the script by case, the folder it ran in, and the Mask R-CNN's state dict."""
    tmp = tmp_path_factory.mktemp("convert")
    model = reference.detector("maskrcnn_resnet50_fpn", seed=0)
    torch.save(model.state_dict(), tmp / "mask.pth")
    classifier = reference.classifier("mobilenet_v2", seed=0)
    save_file(_state(classifier), tmp / "mobile.safetensors")
    torch.save({"model": classifier}, tmp / "pickle.pth")
    (tmp / "existing").mkdir()
    cases = {
        "detector": ("maskrcnn_resnet50_fpn", "mask.pth", "detector"),
        "classifier": ("mobilenet_v2", "mobile.safetensors", "classifier"),
        "whole model": ("mobilenet_v2", "pickle.pth", "a"),
        "other model": ("resnet18", "mobile.safetensors", "b"),
        "no file": ("resnet18", "none.pth", "c"),
        "existing folder": ("resnet18", "mobile.safetensors", "existing"),
    }
    commands = [
        [
            "scripts/convert_torchvision.py",
            f"--model={model}",
            f"--weights={tmp / weights}",
            f"--output={tmp / output}",
            *["--epsilon=1e-5"] * model.startswith("mask"),
        ]
        for model, weights, output in cases.values()
    ]
    return dict(zip(cases, run_commands(commands), strict=True)), tmp, _state(model)


def test_the_script_converts_detectors_that_predict(converted):
    outcomes, tmp, state = converted
    assert outcomes["detector"]["status"] == 0, outcomes["detector"]["stderr"]
    assert "epsilon 1e-05" in outcomes["detector"]["stdout"]
    variables = load_variables(tmp / "detector" / "variables")
    bias = variables["params"]["box_head"]["class"]["bias"]
    np.testing.assert_array_equal(bias, state["roi_heads.box_predictor.cls_score.bias"])
    description = json.loads((tmp / "detector" / "detector.json").read_text())
    names = {entry["id"]: entry["name"] for entry in description["categories"]}
    assert (len(names), names[1], names[18], names[90]) == (90, "person", "dog", "toothbrush")
    assert crnas_jax.load_detector(tmp / "detector").detector.options.mask is not None


def test_the_script_converts_classifiers_to_start_from(converted):
    outcomes, tmp, _ = converted
    assert outcomes["classifier"]["status"] == 0, outcomes["classifier"]["stderr"]
    variables, spec = load_weights(tmp / "classifier")
    assert spec is None
    assert variables["params"]["head"]["kernel"].shape == (1280, 1000)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("whole model", "torchvision.models.mobilenetv2.MobileNetV2"),
        ("other model", "resnet18: fc.bias: missing"),
        ("no file", "No such file"),
        ("existing folder", "--output"),
    ],
)
def test_mistakes_end_in_one_line(converted, case, message):
    outcomes, tmp, _ = converted
    assert outcomes[case]["status"] == 2
    (line,) = outcomes[case]["stderr"].strip().splitlines()
    assert message in line
    assert not any((tmp / name).exists() for name in "abc")
    assert not list((tmp / "existing").iterdir())


def test_tensors_with_old_names_are_converted(converted):
    _, _, state = converted
    old = {OLD_NAMES.get(name, name): value for name, value in state.items()}
    assert set(OLD_NAMES.values()) <= set(old)
    model, variables, _ = torchvision.convert(old, "maskrcnn_resnet50_fpn")
    assert model.options.num_classes == 90
    fpn, mask = state["backbone.fpn.layer_blocks.3.0.bias"], "roi_heads.mask_head.2.0.weight"
    np.testing.assert_array_equal(variables["params"]["fpn"]["output5"]["bias"], fpn)
    with pytest.raises(UserError, match="its present name"):
        torchvision.convert({**state, "rpn.head.conv.bias": fpn}, "maskrcnn_resnet50_fpn")
    kernel = variables["params"]["mask_head"]["conv3"]["kernel"]
    np.testing.assert_array_equal(kernel, state[mask].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer3.1.bn2.weight"), "layer3.1.bn2.weight: missing"),
        (lambda s: s.update({"layer9.weight": s["fc.bias"]}), "layer9.weight: 1 tensors"),
        (lambda s: s.update({"conv1.weight": s["conv1.weight"][:32]}), "stem/conv1/kernel: shape"),
        (lambda s: s.update({"fc.bias": s["fc.bias"] * np.nan}), "fc.bias: not finite"),
        (lambda s: s.update({"fc.weight": s["fc.weight"][0]}), "head/kernel: shape"),
        (lambda s: s.update({"fc.bias": s["fc.bias"][:10]}), "head/kernel: shape"),
        (lambda s: s.update({"fc.bias": s["fc.bias"][0]}), "head/kernel: shape"),
        (lambda s: s.update({"bn1.running_var": -s["bn1.running_var"]}), "running_var: below 0"),
        (lambda s: s.update({"bn9.num_batches_tracked": np.int64(1)}), "bn9.num_batches_tracked"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(resnet18, change, message):
    state = dict(resnet18)
    change(state)
    with pytest.raises(UserError) as error:
        torchvision.convert(state, "resnet18")
    assert message in str(error.value)


PREFIXES = {
    "data parallel": ["module."],
    "compiled": ["_orig_mod."],
    "compiled inside": ["layer1._orig_mod."],
    "lightning": ["model."],
    "an average": ["ema_model.module."],
    "weights and their average": ["model.", "model_ema.module."],
    "an average beside the plain names": ["", "model_ema.module."],
}


@pytest.mark.parametrize("case", PREFIXES)
def test_prefixes_are_taken_off_where_one_network_is_there(resnet18, case):
    prefixes = PREFIXES[case]
    state = {"n_averaged": np.ones(1)} if "average" in case else {}
    for prefix in prefixes:
        if prefix == "layer1._orig_mod.":
            state |= {name.replace("layer1.", prefix): v for name, v in resnet18.items()}
        else:
            state |= {prefix + name: value for name, value in resnet18.items()}
    if len(prefixes) == 1:
        _, variables, _ = torchvision.convert(state, "resnet18")
    else:
        with pytest.raises(
            UserError, match=r"comes 2 times, under the prefixes \['(model.)?', 'mo"
        ):
            torchvision.convert(state, "resnet18")
        with pytest.raises(UserError, match="no prefix of this network; there are"):
            torchvision.convert(state, "resnet18", prefix="modle")
        torchvision.convert(state, "resnet18", prefix=prefixes[0])
        _, variables, _ = torchvision.convert(state, "resnet18", prefix="model_ema.module")
    kernel = variables["params"]["backbone"]["stage1"]["block1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, resnet18["layer1.0.conv1.weight"].transpose(2, 3, 1, 0))


def test_an_epsilon_of_zero_gives_the_same_outputs(resnet18):
    """The scale makes up for it, for tiny variances too."""
    state = {**resnet18, "bn1.running_var": np.full(64, 1e-7, np.float32)}
    _, variables, _ = torchvision.convert(state, "resnet18", epsilon=0.0)
    norm = variables["params"]["backbone"]["stem"]["bn1"]
    var = variables["batch_stats"]["backbone"]["stem"]["bn1"]["var"]
    expected = state["bn1.weight"] / np.sqrt(1e-7)
    np.testing.assert_allclose(norm["scale"] / np.sqrt(var + 1e-5), expected, rtol=1e-4)
    with pytest.raises(UserError, match="epsilon: nan"):
        torchvision.convert(resnet18, "resnet18", epsilon=float("nan"))
    state["bn1.running_var"] = np.zeros(64, np.float32)
    with pytest.raises(UserError, match="not above 0"):
        torchvision.convert(state, "resnet18", epsilon=0.0)


def test_a_standard_network_starts_a_searched_one_and_a_supernet(resnet18):
    """Blocks are filled by their place; in the supernet every branch and every dilation is."""
    _, converted, _ = torchvision.convert(resnet18, "resnet18")
    source = converted["params"]["backbone"]
    searched = Detector(zoo.get("cr_resnet18"), DetectorOptions(3))
    filled, unfilled = fill(searched, _zeros(searched), converted)
    stage = filled["params"]["backbone"]["stage4"]
    for block in ("block1", "block2"):
        jax.tree.map(np.testing.assert_array_equal, stage[block], source["stage4"][block])
    assert {"backbone/stage4/block3", "backbone/stage4/block4"} <= set(unfilled)

    grids = ((1, 2), (1, 2), (2,), (2, 3))
    spec = SupernetSpec("resnet_basic", zoo.get("resnet18").widths, grids, (1, 2, 3))
    supernet = Classifier(spec, ClassifierOptions(1000))
    filled, unfilled = fill(supernet, _zeros(supernet), converted)
    assert unfilled == ["backbone/stage4/rest (3 of 9 rows)"]  # the third block of the deepest
    for operations in ((0, 1, 2, 0, 1, 2), (2, 2, 2, 1, 1, 1)):
        choice = spec.choice((1, 1, 2, 2), operations)
        path = jax.device_get(supernet.extract(filled, choice, (1, 1, 2, 2)))
        blocks = path["params"]["backbone"]
        for place in ("stage1/block1", "stage3/block2", "stage4/block2"):
            stage, block = place.split("/")
            jax.tree.map(np.testing.assert_array_equal, blocks[stage][block], source[stage][block])
