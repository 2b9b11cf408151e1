"""Masks, cascades, NAS-FPN and frozen backbones: what is put out, and what is trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import greatest_difference, randomised, tiny_batch, tiny_options

from crnas_jax.arch import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.backbone import Frozen
from crnas_jax.models.banks import SupernetSpec
from crnas_jax.models.build import Detector
from crnas_jax.models.detectors import NeckOptions
from crnas_jax.models.layers import BN_TRAIN
from crnas_jax.models.mask_head import MaskHeadOptions
from crnas_jax.models.nas_fpn import NASFPN
from crnas_jax.models.roi_heads import CASCADE_STAGES
from crnas_jax.training.mesh import make_mesh, put_batch
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

ARCH = Arch("resnet_basic", (1, 1, 1, 1), widths=(8, 8, 16, 16))
MOBILE = Arch("mobilenet_v2", (1, 1, 1, 1, 1), widths=(4, 4, 8, 8, 8, 12, 16))


def _options(cascade=False, masks=False, nas_fpn=False):
    options = tiny_options()
    if cascade:
        box = {"stages": CASCADE_STAGES, "class_agnostic": True, "loss_beta": 1.0}
        options = dataclasses.replace(options, box=dataclasses.replace(options.box, **box))
    neck = NeckOptions("nas_fpn", 2, 3) if nas_fpn else NeckOptions()
    mask = MaskHeadOptions(8, 2) if masks else None
    return dataclasses.replace(options, neck=neck, mask=mask)


@functools.cache
def _made(arch, **kinds):
    detector = Detector(arch, _options(**kinds))
    return detector, randomised(jax.device_get(jax.jit(detector.init)(jax.random.key(0))))


def _batch():
    crops = np.random.default_rng(0).integers(0, 2, (2, 2, 16, 16)).astype(np.uint8)
    return {**tiny_batch(), "masks": crops}


@pytest.mark.parametrize(
    ("arch", "kinds"),
    [
        (ARCH, {"cascade": True, "masks": True}),
        (MOBILE, {"masks": True}),
        (ARCH, {"nas_fpn": True}),
    ],
    ids=["cascade mask", "mobilenet mask", "nas-fpn"],
)
def test_losses_and_detections(arch, kinds):
    detector, variables = _made(arch, **kinds)
    keys = jax.random.split(jax.random.key(1), 2)

    @jax.jit
    def run(variables, batch):
        def loss(params):
            losses, _ = detector.losses({**variables, "params": params}, batch, None, keys)
            return sum(losses.values()), losses

        gradient, losses = jax.grad(loss, has_aux=True)(variables["params"])
        return losses, gradient, detector.apply(variables, batch, None)

    losses, gradient, found = run(variables, _batch())
    stages = "123" if kinds.get("cascade") else [""]
    heads = ["classifier", "box"] + ["mask"] * ("masks" in kinds)
    names = {f"loss_{head}{stage}" for head in heads for stage in stages}
    assert set(losses) == {"loss_objectness", "loss_rpn_box", *names}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, gradient)))
    # Every layer learns, of the pyramid where anchors or RoIs were drawn.
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert "fpn" in path[0].key or (leaf != 0).any(), path
    assert found["boxes"].shape == (2, 10, 4)
    if "masks" in kinds:
        assert found["masks"].shape == (2, 10, 28, 28)
        inside = found["masks"][found["valid"]]
        assert ((inside > 0) & (inside < 1)).all()
        assert not found["masks"][~found["valid"]].any()


def test_a_cascade_refines_boxes_and_averages_logits():
    """With two more heads that keep the boxes, and whose logits are the first's, nothing changes;
    nothing is suppressed or left out here."""
    detector, variables = _made(ARCH, cascade=True, masks=True)
    everything = {"nms_iou": 1.0, "score_threshold": 0.0, "detections": 60, "nms_candidates": 60}
    box = dataclasses.replace(detector.options.box, **everything)
    params = dict(variables["params"])
    first = params["box_head1"]
    keeping = {**first, "box": jax.tree.map(np.zeros_like, first["box"])}
    shared = {name: params[name] for name in ("backbone", "fpn", "rpn")}
    found = []
    for stages, heads in (
        (CASCADE_STAGES[:1], {"box_head": first}),
        (
            (CASCADE_STAGES[1], CASCADE_STAGES[0]),
            {"box_head1": keeping, "box_head2": first},
        ),
    ):
        own = dataclasses.replace(box, stages=stages)
        options = dataclasses.replace(detector.options, mask=None, box=own)
        one = Detector(ARCH, options)
        run = jax.jit(lambda v, b, one=one: one.apply(v, b, None))
        found.append(run({**variables, "params": {**shared, **heads}}, _batch()))
    assert found[0].pop("valid").sum() > 60
    found[1].pop("valid")
    assert greatest_difference(*found) < 1e-3


def test_a_cascade_of_boxes_for_every_class_is_refused():
    options = tiny_options()
    with pytest.raises(UserError, match="class_agnostic"):
        dataclasses.replace(options, box=dataclasses.replace(options.box, stages=CASCADE_STAGES))


@pytest.mark.parametrize("lowest_level", [2, 3])
def test_nas_fpn_keeps_the_sizes_of_its_levels(lowest_level):
    """On a canvas that is no multiple of the coarsest stride too."""
    features = tuple(jnp.zeros((1, -(-72 // s), -(-104 // s), 8)) for s in (4, 8, 16, 32))
    neck = NASFPN(4, 1, lowest_level)
    pyramid, _ = jax.eval_shape(
        lambda: neck.init_with_output(jax.random.key(0), features, BN_TRAIN, jnp.ones(1))
    )
    strides = [2 ** (lowest_level + level) for level in range(5)]
    assert [level.shape for level in pyramid] == [
        (1, -(-72 // stride), -(-104 // stride), 4) for stride in strides
    ]


@pytest.mark.parametrize(
    ("spec", "frozen", "still"),
    [
        (ARCH, Frozen(2), {"stem", "stage1"}),
        (ARCH, Frozen(0, norm=True), set()),
        (
            SupernetSpec("resnet_basic", ARCH.widths, ((1, 2), (1,), (1,), (1,))),
            Frozen(2),
            {"stem", "stage1"},
        ),
    ],
    ids=["stages", "norm", "supernet"],
)
def test_what_is_frozen_stays_bit_identical(spec, frozen, still):
    """Under weight decay, parameters and statistics."""
    detector, mesh = Detector(spec, tiny_options(), frozen=frozen), make_mesh(2, 1)
    optimizer = make_optimizer(OptimizerOptions(weight_decay=0.1, warmup_steps=1), 2, 10)
    trainer = Trainer(detector, optimizer, mesh, seed=0)
    batch = put_batch(mesh, {**tiny_batch(2), "image_id": np.arange(2)})
    state = trainer.init()
    before = jax.device_get(state)
    for _ in range(2):
        choice = detector.sample(np.random.default_rng(0))
        state, _ = trainer.step(state, [batch], choice)
    for collection in ("params", "batch_stats"):
        for name, tree in before[collection]["backbone"].items():
            moved = greatest_difference(tree, state[collection]["backbone"][name])
            if frozen.norm and collection == "batch_stats":
                assert moved == 0
            else:
                assert (moved == 0) == (name in still), (collection, name)
    if frozen.norm:
        block = before["params"]["backbone"]["stage2"]["block1"]
        after = state["params"]["backbone"]["stage2"]["block1"]
        assert greatest_difference(block["bn1"], after["bn1"]) == 0
        assert greatest_difference(block["conv1"], after["conv1"]) > 0
