"""RetinaNet and scale-permuted backbones in every detector: losses, detections, starts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fresh_variables, randomised, tiny_batch, tiny_options, tiny_spinenet

from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions, ImageClassifier
from crnas_jax.models.heads import retina_outputs
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.layers import BN_RUNNING, LayerOptions
from crnas_jax.models.rcnn import NeckOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.models.transfer import fill

RESNET = Arch("resnet_basic", (1, 1, 1, 1), widths=(8, 8, 16, 16))
SPINENET = tiny_spinenet()


def _retinanet(form="spinenet", **options):
    head = RetinaHeadOptions(form, 1, anchor_sizes=(16.0, 32.0, 48.0, 64.0, 96.0))
    return RetinaNetOptions(3, 32, dataclasses.replace(head, **options))


def _run(detector, batch):
    """Return losses, gradient and detections on a batch."""
    variables = randomised(fresh_variables(detector))
    keys = jax.random.split(jax.random.key(1), len(batch["weight"]))

    @jax.jit
    def run(variables, batch):
        def loss(params):
            losses, stats = detector.losses({**variables, "params": params}, batch, None, keys)
            return sum(losses.values()), (losses, stats)

        gradient, (losses, stats) = jax.grad(loss, has_aux=True)(variables["params"])
        return losses, gradient, detector.apply(variables, batch, None), stats

    return jax.device_get(run(variables, batch))


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        (SPINENET, _retinanet()),
        (RESNET, _retinanet("torchvision_v2")),
        pytest.param(
            SPINENET,
            dataclasses.replace(tiny_options(), mask=MaskHeadOptions(8, 1)),
            marks=[pytest.mark.campaign, pytest.mark.programs],
        ),
    ],
    ids=["spinenet retinanet", "resnet retinanet", "spinenet mask"],
)
def test_losses_are_finite_and_detections_have_their_shapes(arch, options):
    detector = Detector(arch, options)
    crops = np.random.default_rng(0).integers(0, 2, (2, 2, 16, 16)).astype(np.uint8)
    losses, gradient, detections, stats = _run(detector, {**tiny_batch(), "masks": crops})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, gradient, stats)))
    most = detector.options.max_detections
    assert detections["boxes"].shape == (2, most, 4)
    assert ("masks" in detections) == options.has_masks
    assert jax.tree.structure(stats) == jax.tree.structure(detector.shapes["batch_stats"])
    if not options.has_masks:  # every anchor counts
        assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["backbone"]))


def test_padding_images_and_crowds_do_not_count():
    detector = Detector(RESNET, _retinanet("torchvision"))
    batch = tiny_batch(4, seed=1)
    batch["weight"][3] = 0
    losses = _run(detector, batch)[0]
    changed = {name: values.copy() for name, values in batch.items()}
    for name in ("image", "boxes", "labels"):
        changed[name][3] = tiny_batch(4, seed=2)[name][3]
    changed["boxes"][1, 0] = (1, 1, 60, 60)  # a crowd
    other = _run(detector, changed)[0]
    for name in losses:
        assert losses[name] == pytest.approx(other[name], rel=1e-5)


def test_spinenets_losses_of_literal_outputs():
    """One anchor matched, all logits 0 and all deltas 0 but one."""
    anchors = (np.array([[0, 0, 16, 16], [32, 32, 48, 48]], np.float32),)
    truth = jnp.array([[[0.0, 0, 16, 16]]])
    deltas = jnp.zeros((1, 2, 4)).at[0, 0, 1].set(0.3)
    options = RetinaHeadOptions("spinenet", 1)
    classification, box = retina_outputs.retina_losses(
        [(jnp.zeros((1, 2, 2)), deltas)],
        anchors,
        truth,
        jnp.array([[2]]),
        jnp.array([[True]]),
        jnp.array([True]),
        options,
    )
    # Of four logits one is right: (1/4 + 3 x 3/4) x 0.5^1.5 x log 2, over 1 positive + 1.
    expected = 2.5 * 0.5**1.5 * np.log(2) / 2
    np.testing.assert_allclose(classification, expected, rtol=1e-5)
    np.testing.assert_allclose(box, 50 * (0.1 * 0.3 - 0.005) / 2 / 4, rtol=1e-5)


def test_detections_are_the_best_pairs_after_suppression():
    anchors = (
        np.array([[0, 0, 16, 16], [1, 0, 17, 16], [32, 32, 48, 48]], np.float32),
        np.array([[0, 0, 64, 64]], np.float32),
    )
    first = jnp.array([[[2.0, -9], [1.0, 0.5], [-9, -1.0]]])
    outputs = [(first, jnp.zeros((1, 3, 4))), (jnp.array([[[0.0, -9]]]), jnp.zeros((1, 1, 4)))]
    for form in ("spinenet", "torchvision"):
        options = RetinaHeadOptions(form, 1, max_detections=5)
        found = retina_outputs.postprocess(outputs, anchors, jnp.array([[64, 64]]), options)
        # The second anchor's first class is suppressed by the first one's.
        assert found["labels"][0].tolist() == [1, 2, 1, 2, 0]
        expected = [1 / (1 + np.exp(-logit)) for logit in (2, 0.5, 0, -1)]
        np.testing.assert_allclose(found["scores"][0], [*expected, 0], rtol=1e-5)
        np.testing.assert_array_equal(found["boxes"][0, 1], anchors[0][1])
    few = dataclasses.replace(options, num_candidates=1)  # of each level
    found = retina_outputs.postprocess(outputs, anchors, jnp.array([[64, 64]]), few)
    assert found["labels"][0].tolist() == [1, 1, 0, 0, 0]
    broken = [(first.at[0, 2, 0].set(jnp.nan), outputs[0][1]), outputs[1]]
    found = retina_outputs.postprocess(broken, anchors, jnp.array([[64, 64]]), options)
    assert np.isnan(found["scores"]).all()
    assert found["valid"].all()


@pytest.mark.parametrize("family", ["spinenet", "spinenet_mobile"])
def test_a_pretrained_network_fills_every_weight_of_a_backbone(family):
    arch = tiny_spinenet(family)
    classifier = Classifier(arch, ClassifierOptions(5))
    source = fresh_variables(classifier, seed=1)
    detector = Detector(arch, _retinanet())
    filled, unfilled = fill(detector, fresh_variables(detector), source)
    assert unfilled == ["head"]
    for name in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, filled[name]["backbone"], source[name]["backbone"]
        )


class _Levels(nn.Module):
    """A backbone that puts out given levels, whatever the image."""

    levels: tuple

    def __call__(self, x, choice, norm):
        return self.levels


def test_a_classifier_reads_the_mean_of_all_levels():
    """From the coarsest down, each level resized to the next: 2 x 1 cells, 3 x 2, 6 x 4."""
    rng = np.random.default_rng(0)
    levels = tuple(
        jnp.array(rng.normal(0, 1, (1, *size, 2)), jnp.float32) for size in ((6, 4), (3, 2), (2, 1))
    )
    options = ClassifierOptions(5).for_backbone(SPINENET)
    module = ImageClassifier(_Levels(levels), options)
    batch = jax.device_put(tiny_batch(1))
    merged = module.apply({}, batch, None, BN_RUNNING, method="features")
    fine, middle, coarse = (np.asarray(level[0]) for level in levels)
    middle = middle + coarse[[0, 0, 1]][:, [0, 0]]
    expected = (fine + middle[[0, 0, 1, 1, 2, 2]][:, [0, 0, 1, 1]]) / 3
    np.testing.assert_allclose(merged[0], expected, rtol=1e-6)
    assert Classifier(SPINENET, options).options.merges_levels
    assert not Classifier(RESNET, ClassifierOptions(5)).options.merges_levels


def test_frozen_parts_keep_their_parameters_and_statistics():
    freeze = FreezeOptions(2)
    detector = Detector(SPINENET, _retinanet(), freeze=freeze)
    variables = randomised(fresh_variables(detector))
    batch, keys = tiny_batch(), jax.random.split(jax.random.key(1), 2)
    _, stats = jax.jit(lambda v, b: detector.losses(v, b, None, keys))(variables, batch)
    mask = detector.trainable_mask(variables["params"])["backbone"]
    frozen = ("stem", "block0", "block1")
    for name, stored in variables["batch_stats"]["backbone"].items():
        pairs = zip(*map(jax.tree.leaves, (stored, stats["backbone"][name])), strict=True)
        stays = all((before == after).all() for before, after in pairs)
        assert stays == (name in frozen)
        assert all(leaf == (name not in frozen) for leaf in jax.tree.leaves(mask[name]))
    assert freeze.freezes_parameter(SPINENET, ("block1", "repeat1", "conv1"))
    assert not freeze.freezes_parameter(SPINENET, ("block2", "repeat1", "conv1"))
    with pytest.raises(UserError, match="freeze_at: 3, and a scale-permuted backbone has no c3"):
        Detector(SPINENET, _retinanet(), freeze=FreezeOptions(3))


@pytest.mark.parametrize(
    ("arch", "options", "more", "message"),
    [
        (SPINENET, RetinaNetOptions(3, neck=NeckOptions("fpn")), {}, "puts out a pyramid"),
        (RESNET, RetinaNetOptions(3, neck=NeckOptions("none")), {}, "puts out no pyramid"),
        (RESNET, RetinaNetOptions(3, neck=NeckOptions("nas_fpn", 1, 2)), {}, "reads p3..p7"),
        (RESNET, _retinanet(anchor_sizes=(8.0,) * 4), {}, "4 for 5 levels"),
        (tiny_spinenet(num_levels=4), tiny_options(), {}, "its proposals need five"),
        (RESNET, dataclasses.replace(_retinanet("torchvision_v2"), pyramid_channels=24), {}, "32"),
        (RESNET, _retinanet(), {"layers": LayerOptions(stochastic_depth=0.1)}, "no permuted"),
    ],
)
def test_options_that_do_not_fit_the_backbone_are_refused(arch, options, more, message):
    with pytest.raises(UserError, match=message):
        Detector(arch, options, **more)
