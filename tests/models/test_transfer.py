"""Starting from other weights: blocks by place, the rest by name, what is missing named."""

import jax
import numpy as np
import pytest
from conftest import randomised, tiny_options

from crnas_jax.arch import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.banks import SupernetSpec
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.transfer import fill

WIDTHS = (8, 8, 16, 16)
NETWORK = Arch("resnet_basic", (1, 2, 2, 1), widths=WIDTHS)
SUPERNET = SupernetSpec("resnet_basic", WIDTHS, ((1, 2), (2,), (1, 3), (1,)), (1, 2))


def _variables(model, seed):
    return randomised(jax.device_get(jax.jit(model.init)(jax.random.key(seed))), seed)


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


def test_deeper_stages_keep_their_own_further_blocks():
    deeper = _classifier(Arch("resnet_basic", (1, 3, 1, 1), widths=WIDTHS))
    own = _variables(deeper, 0)
    given = _variables(_classifier(NETWORK), 1)
    filled, unfilled = fill(deeper, own, given)
    assert unfilled == ["backbone/stage2/block3"]
    stage = filled["params"]["backbone"]["stage2"]
    np.testing.assert_array_equal(
        stage["block2"]["conv1"]["kernel"],
        given["params"]["backbone"]["stage2"]["block2"]["conv1"]["kernel"],
    )
    np.testing.assert_array_equal(
        stage["block3"]["conv1"]["kernel"],
        own["params"]["backbone"]["stage2"]["block3"]["conv1"]["kernel"],
    )


@pytest.mark.parametrize("sharing", ["branch", "prefix"])
def test_a_supernet_starts_from_a_network(sharing):
    """Every path over blocks that the network has is then the network, whatever its dilations."""
    spec = SupernetSpec("resnet_basic", WIDTHS, SUPERNET.grids, (1, 2), sharing)
    model, given = _classifier(spec), _variables(_classifier(NETWORK), 1)
    filled, unfilled = fill(model, _variables(model, 0), given)
    rows = {"branch": "2 of 4", "prefix": "2 of 4"}[sharing]  # place 3 of stage 3, two dilations
    assert unfilled == [f"backbone/stage1/rest", f"backbone/stage3/rest ({rows} rows)"]  # noqa: F541
    for operations in ((0,) * 5, (1, 0, 1, 1, 0)):
        choice = spec.choice((1, 2, 1, 1), operations)
        path = jax.device_get(model.extract(filled, choice, (1, 2, 1, 1)))
        for stage, block in ((1, 1), (2, 2), (3, 1), (4, 1)):
            jax.tree.map(
                np.testing.assert_array_equal,
                path["params"]["backbone"][f"stage{stage}"][f"block{block}"],
                given["params"]["backbone"][f"stage{stage}"][f"block{block}"],
            )


def test_a_supernet_starts_from_a_supernet():
    given = _variables(_classifier(SUPERNET), 1)
    model = Detector(SUPERNET, tiny_options())
    filled, unfilled = fill(model, _variables(model, 0), given)
    assert sorted(unfilled) == ["box_head", "fpn", "rpn"]
    jax.tree.map(
        np.testing.assert_array_equal, filled["params"]["backbone"], given["params"]["backbone"]
    )


def test_weights_that_fit_nowhere_are_refused():
    model = _classifier(NETWORK)
    other = _classifier(Arch("resnet_bottleneck", (1, 1, 1, 1), widths=(6, 6, 6, 6)))
    with pytest.raises(UserError, match="nothing in it fits"):
        fill(model, _variables(model, 0), {"params": {}, "batch_stats": {}})
    with pytest.raises(UserError, match="nothing in it fits"):
        fill(model, _variables(model, 0), _variables(other, 0))
