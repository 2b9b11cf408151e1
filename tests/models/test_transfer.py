"""Starting from other weights: blocks match by place, other layers by name; gaps are reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fresh_variables, randomised, tiny_options

from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.layers import BN_RUNNING, Normalization
from crnas_jax.models.supernet.banks import SupernetSpec, bank_keys
from crnas_jax.models.transfer import fill

WIDTHS = (8, 8, 16, 16)
NETWORK = Arch("resnet_basic", (1, 2, 2, 1), widths=WIDTHS)
SUPERNET = SupernetSpec("resnet_basic", WIDTHS, ((1, 2), (2,), (1, 3), (1,)), (1, 2))


def _variables(model, seed):
    return randomised(fresh_variables(model, seed), seed)


def _classifier(spec):
    return Classifier(spec, ClassifierOptions(9))


def test_a_detector_starts_from_its_classifier():
    detector = Detector(NETWORK, tiny_options())
    given = _variables(_classifier(NETWORK), 1)
    filled, unfilled = fill(detector, _variables(detector, 0), given)
    assert sorted(unfilled) == ["box_head", "fpn", "rpn"]
    for name in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, filled[name]["backbone"], given[name]["backbone"]
        )


def test_deeper_stages_keep_their_fresh_further_blocks():
    deeper = _classifier(Arch("resnet_basic", (1, 3, 1, 1), widths=WIDTHS))
    fresh = _variables(deeper, 0)
    given = _variables(_classifier(NETWORK), 1)
    filled, unfilled = fill(deeper, fresh, given)
    assert unfilled == ["backbone/stage2/block3"]
    stage = filled["params"]["backbone"]["stage2"]
    np.testing.assert_array_equal(
        stage["block2"]["conv1"]["kernel"],
        given["params"]["backbone"]["stage2"]["block2"]["conv1"]["kernel"],
    )
    np.testing.assert_array_equal(
        stage["block3"]["conv1"]["kernel"],
        fresh["params"]["backbone"]["stage2"]["block3"]["conv1"]["kernel"],
    )


@pytest.mark.parametrize("sharing", ["branch", "prefix"])
def test_a_supernet_starts_from_a_network(sharing):
    """A path over blocks that the network has then equals the network, at any dilation."""
    spec = SupernetSpec("resnet_basic", WIDTHS, SUPERNET.grids, (1, 2), sharing)
    model, given = _classifier(spec), _variables(_classifier(NETWORK), 1)
    filled, unfilled = fill(model, _variables(model, 0), given)
    # Place 2 of stage 1, and place 3 of stage 3 with both dilations.
    assert unfilled == ["backbone/stage1/rest", "backbone/stage3/rest (2 of 4 rows)"]
    for operations in ((0,) * 5, (1, 0, 1, 1, 0)):
        choice = spec.choice((1, 2, 1, 1), operations)
        path = jax.device_get(model.extract(filled, choice, (1, 2, 1, 1)))
        for stage, block in ((1, 1), (2, 2), (3, 1), (4, 1)):
            jax.tree.map(
                np.testing.assert_array_equal,
                path["params"]["backbone"][f"stage{stage}"][f"block{block}"],
                given["params"]["backbone"][f"stage{stage}"][f"block{block}"],
            )


@pytest.mark.parametrize("sharing", ["branch", "prefix"])
def test_a_network_starts_from_its_path_in_a_supernet(sharing):
    """Every block is taken: none keeps the weights it was drawn with."""
    spec = SupernetSpec("resnet_basic", WIDTHS, SUPERNET.grids, (1, 2), sharing)
    arch = Arch("resnet_basic", (1, 2, 3, 1), (1, 2, 2, 1, 2, 1, 2), WIDTHS)
    supernet, model = _classifier(spec), _classifier(arch)
    given = _variables(supernet, 1)
    filled, unfilled = fill(model, _variables(model, 0), given, spec)
    assert unfilled == []
    choice = spec.choice(arch.depths, [dilation - 1 for dilation in arch.dilations])
    path = supernet.extract(given, choice, arch.depths)
    for collection in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, filled[collection], path[collection])


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (Arch("resnet_basic", (1, 2, 2, 1), widths=WIDTHS), r"depths\[2\] 2 is not on the grid"),
        (Arch("resnet_basic", (1, 2, 1, 1), (3, 1, 1, 1, 1), WIDTHS), r"dilations are \[1, 2\]"),
        (Arch("resnet_bottleneck", (1, 2, 1, 1)), "family resnet_basic"),
        (Arch("resnet_basic", (1, 2, 1, 1)), r"its widths are \[8, 8, 16, 16\], this network's"),
    ],
)
def test_a_network_without_a_path_in_the_supernet_is_refused(arch, message):
    model = _classifier(arch)
    with pytest.raises(UserError, match=message):
        fill(model, {}, {}, SUPERNET)


def test_a_supernet_starts_from_a_supernet():
    given = _variables(_classifier(SUPERNET), 1)
    model = Detector(SUPERNET, tiny_options())
    filled, unfilled = fill(model, _variables(model, 0), given, SUPERNET)
    assert sorted(unfilled) == ["box_head", "fpn", "rpn"]
    jax.tree.map(
        np.testing.assert_array_equal, filled["params"]["backbone"], given["params"]["backbone"]
    )


def _marked(spec):
    """Return a supernet in which every kernel of stage 1 holds its branch, place and dilation."""
    variables = _variables(_classifier(spec), 0)
    for kind in ("first", "rest"):
        for module in ("conv1", "conv2"):
            kernel = variables["params"]["backbone"]["stage1"][kind][module]["kernel"]
            for row, (depth, place, dilation) in enumerate(
                bank_keys(spec, 0, kind == "first", module)
            ):
                kernel[row] = 100 * (depth or 0) + 10 * place + (dilation or 0)
    return variables


def _spec(grid, dilations=(1,), sharing="branch"):
    return SupernetSpec("resnet_basic", WIDTHS, (grid, (1,), (1,), (1,)), dilations, sharing)


@pytest.mark.parametrize(
    ("source", "target", "module", "expected"),
    [
        # Banks of equal size with rows at other places: no row fits another place.
        (_spec((1, 5)), _spec((2, 4)), "conv1", None),
        (_spec((1, 3, 4)), _spec((3, 5)), "conv1", [310, 320, None, None, None, None]),
        # Kernels of separate dilations start from the one shared kernel.
        (_spec((1, 3)), _spec((3,), (1, 2)), "conv2", [310, 310, 320, 320]),
        (_spec((3,), (1, 2)), _spec((3,), (2, 3)), "conv2", [312, None, 322, None]),
        (_spec((3,), sharing="prefix"), _spec((2, 3)), "conv1", [10, 10, 20]),
    ],
)
def test_rows_go_by_branch_place_and_dilation(source, target, module, expected):
    model = _classifier(target)
    fresh = _variables(model, 1)
    filled, unfilled = fill(model, fresh, _marked(source), source)
    rows = filled["params"]["backbone"]["stage1"]["rest"][module]["kernel"]
    before = fresh["params"]["backbone"]["stage1"]["rest"][module]["kernel"]
    expected = [None] * len(rows) if expected is None else expected
    assert len(rows) == len(expected)
    for row, fresh_row, value in zip(rows, before, expected, strict=True):
        np.testing.assert_array_equal(row, fresh_row if value is None else value)
    assert any("stage1" in name for name in unfilled) == (None in expected)


def test_other_dtypes_are_cast_and_nan_is_refused():
    model = _classifier(NETWORK)
    given = _variables(model, 1)
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), given)
    filled, _ = fill(model, _variables(model, 0), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(filled)} == {np.dtype("float32")}
    given["params"]["head"]["bias"][0] = np.nan
    with pytest.raises(UserError, match="not all finite"):
        fill(model, _variables(model, 0), given)


def test_weights_that_fit_nowhere_are_refused():
    model = _classifier(NETWORK)
    other = _classifier(Arch("resnet_bottleneck", (1, 1, 1, 1), widths=(6, 6, 6, 6)))
    with pytest.raises(UserError, match="nothing in it fits"):
        fill(model, _variables(model, 0), {"params": {}, "batch_stats": {}})
    with pytest.raises(UserError, match="nothing in it fits"):
        fill(model, _variables(model, 0), _variables(other, 0))


def _backbone(variables):
    return {collection: tree["backbone"] for collection, tree in variables.items()}


def _features(model, variables):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 64, 3)), jnp.float32)
    norm = Normalization(BN_RUNNING, jnp.ones(1))
    backbone = jax.tree.map(jnp.asarray, _backbone(variables))
    return model.backbone.module.apply(backbone, x, None, norm)


def _scales(variables, name):
    """Return {"stage1/block1": ...} of the scales of the blocks' normalisation `name`."""
    return {
        f"{stage}/{block}": modules[name]["scale"]
        for stage, blocks in _backbone(variables)["params"].items()
        if stage.startswith("stage")
        for block, modules in blocks.items()
    }


@pytest.mark.parametrize(
    ("family", "others", "last"),
    [("resnet_basic", ("bn1",), "bn2"), ("resnet_bottleneck", ("bn1", "bn2"), "bn3")],
)
def test_further_blocks_start_as_identities(family, others, last):
    """The deeper network starts as the same function as the one that its weights come from."""
    widths = (4, 4, 8, 8)
    source = _classifier(Arch(family, (1, 1, 2, 1), widths=widths))
    deeper = _classifier(Arch(family, (2, 1, 4, 1), widths=widths))
    given = _variables(source, 1)
    filled, unfilled = fill(deeper, fresh_variables(deeper, 0), given)
    further = ["backbone/stage1/block2", "backbone/stage3/block3", "backbone/stage3/block4"]
    assert sorted(unfilled) == further
    scales, source_scales = _scales(filled, last), _scales(given, last)
    for place, scale in scales.items():
        np.testing.assert_array_equal(scale, source_scales.get(place, 0 * scale))
    for name in others:
        for place in scales.keys() - source_scales.keys():
            np.testing.assert_array_equal(_scales(filled, name)[place], 1)
    for feature, expected in zip(_features(deeper, filled), _features(source, given), strict=True):
        np.testing.assert_allclose(feature, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sharing", ["branch", "prefix"])
def test_rows_that_a_network_does_not_fill_start_as_identities(sharing):
    spec = SupernetSpec("resnet_basic", WIDTHS, SUPERNET.grids, (1, 2), sharing)
    model, given = _classifier(spec), _variables(_classifier(NETWORK), 1)
    filled, _ = fill(model, fresh_variables(model, 0), given)
    num_zeros = 0
    for name, scales in _scales(filled, "bn2").items():
        stage, kind = name.split("/")
        keys = bank_keys(spec, int(stage[-1]) - 1, kind == "first", "bn2")
        for scale, (_, place, _) in zip(scales, keys, strict=True):
            expected = _scales(given, "bn2").get(f"{stage}/block{place + 1}", 0 * scale)
            np.testing.assert_array_equal(scale, expected)
            num_zeros += not scale.any()
    assert num_zeros == 4  # place 2 of stage 1 and place 3 of stage 3, two dilations each


@pytest.mark.parametrize(
    ("source", "target", "first", "rest"),
    [
        # Branches 3 and 5, of which the source has the former.
        (_spec((1, 3, 4)), _spec((3, 5)), [2, 0], [2, 2, 0, 0, 0, 0]),
        # Dilations 2 and 3, of which the source has the former: `conv1` is filled in every block.
        (_spec((2,), (1, 2)), _spec((2,), (2, 3)), [2, 1], [2, 1]),
    ],
)
def test_rows_that_a_supernet_does_not_fill_start_as_identities(source, target, first, rest):
    given = fresh_variables(_classifier(source), 1)
    given["params"] = jax.tree.map(lambda leaf: 2 * leaf, given["params"])
    model = _classifier(target)
    filled, _ = fill(model, fresh_variables(model, 0), given, source)
    scales = _scales(filled, "bn2")
    assert scales["stage1/first"][:, 0].tolist() == first
    assert scales["stage1/rest"][:, 0].tolist() == rest


def test_only_blocks_with_a_shortcut_start_as_identities():
    """Other blocks would pass nothing on."""
    widths = (4, 8, 8, 12, 16, 20, 24)
    shallow = Arch("mobilenet_v2", (1, 1, 3, 2, 2), widths=widths)
    given = fresh_variables(_classifier(shallow), 1)
    for collection in given:
        del given[collection]["backbone"]["stage3"], given[collection]["backbone"]["stage5"]
    model = _classifier(Arch("mobilenet_v2", (2, 2, 3, 2, 2), widths=widths))
    filled, _ = fill(model, fresh_variables(model, 0), given)
    zeros = {place for place, scale in _scales(filled, "bn3").items() if not scale.any()}
    assert zeros == {"stage2/block2", "stage3/block2", "stage5/block2"}
    assert all(scale.all() for scale in _scales(filled, "bn2").values())

    given = _variables(_classifier(NETWORK), 1)
    for collection in given:
        del given[collection]["backbone"]["stage2"]
    model = _classifier(NETWORK)
    filled, _ = fill(model, fresh_variables(model, 0), given)
    zeros = {place for place, scale in _scales(filled, "bn2").items() if not scale.any()}
    assert zeros == {"stage2/block1", "stage2/block2"}  # the first has a projection


def test_frozen_scales_do_not_start_at_zero():
    """They would stay there."""
    detector = Detector(Arch("resnet_basic", (2, 3, 3, 2), widths=WIDTHS), tiny_options())
    fresh, given = fresh_variables(detector, 0), _variables(_classifier(NETWORK), 1)
    for freeze, expected in (
        (FreezeOptions(), {"stage1/block2", "stage2/block3", "stage3/block3", "stage4/block2"}),
        (FreezeOptions(freeze_at=3), {"stage3/block3", "stage4/block2"}),
        (FreezeOptions(freeze_norm=True), set()),
    ):
        filled, _ = fill(dataclasses.replace(detector, freeze=freeze), fresh, given)
        scales, source_scales = _scales(filled, "bn2"), _scales(given, "bn2")
        assert {place for place, scale in scales.items() if not scale.any()} == expected
        for place in scales.keys() - source_scales.keys() - expected:
            np.testing.assert_array_equal(scales[place], 1)


@pytest.mark.parametrize("kept", [("bn2",), ("conv1", "conv2")])
def test_partly_filled_blocks_keep_their_scales(kept):
    model = _classifier(NETWORK)
    given = _variables(model, 1)
    for tree in _backbone(given).values():
        block = tree["stage2"]["block2"]
        tree["stage2"]["block2"] = {name: block[name] for name in kept if name in block}
    filled, _ = fill(model, fresh_variables(model, 0), given)
    block = _backbone(given)["params"]["stage2"]["block2"]
    expected = block["bn2"]["scale"] if "bn2" in kept else 1
    np.testing.assert_array_equal(_scales(filled, "bn2")["stage2/block2"], expected)
