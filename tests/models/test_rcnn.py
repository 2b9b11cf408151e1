"""Masks, cascades, NAS-FPN and frozen backbones: their outputs, and what is trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import largest_difference, randomised, tiny_batch, tiny_options

from crnas_jax.arch.cost.detectors import detector_parts
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.build import Detector
from crnas_jax.models.heads import box_head, rpn
from crnas_jax.models.heads.box_head import CASCADE_STAGES
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.layers import BN_RUNNING, BN_TRAIN, Normalization
from crnas_jax.models.necks.nas_fpn import CELLS, NASFPN
from crnas_jax.models.rcnn import NeckOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
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
def _detector(arch, **kinds):
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
def test_losses_are_finite_and_detections_have_their_shapes(arch, kinds):
    detector, variables = _detector(arch, **kinds)
    keys = jax.random.split(jax.random.key(1), 2)

    @jax.jit
    def run(variables, batch):
        def loss(params):
            losses, _ = detector.losses({**variables, "params": params}, batch, None, keys)
            return sum(losses.values()), losses

        gradient, losses = jax.grad(loss, has_aux=True)(variables["params"])
        return losses, gradient, detector.apply(variables, batch, None)

    losses, gradient, detections = run(variables, _batch())
    stages = "123" if kinds.get("cascade") else [""]
    heads = ["classifier", "box"] + ["mask"] * ("masks" in kinds)
    names = {f"loss_{head}{stage}" for head in heads for stage in stages}
    assert set(losses) == {"loss_objectness", "loss_rpn_box", *names}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, gradient)))
    # Every layer has a gradient, those of the pyramid where anchors or RoIs were drawn.
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert "fpn" in path[0].key or (leaf != 0).any(), path
    assert detections["boxes"].shape == (2, 10, 4)
    if "masks" in kinds:
        assert detections["masks"].shape == (2, 10, 28, 28)
        inside = detections["masks"][detections["valid"]]
        assert ((inside > 0) & (inside < 1)).all()
        assert not detections["masks"][~detections["valid"]].any()


def _step_by_step(detector, variables, batch):
    """Return boxes and scores of every RoI and class, each stage of a cascade alone, in NumPy."""
    options, logits = detector.options, 0.0

    def dense(module):
        pyramid = module.features(batch, None, BN_RUNNING)
        outputs, anchors = module.rpn(pyramid), rpn.level_anchors((64, 64), pyramid, options.rpn)
        size = batch["image_size"]
        return pyramid, rpn.proposals(outputs, anchors, size, options.rpn, training=False)[0]

    def head(module, pyramid, rois, stage):
        pooled = box_head.pool(pyramid, rois, (64, 64), options.box, options.box.pool_size)
        return module.box_heads[stage](pooled)

    run = functools.partial(detector.module.apply, variables)
    pyramid, rois = jax.jit(lambda: run(method=dense))()
    for stage, weights in enumerate(((20, 20, 10, 10), (10, 10, 5, 5))):
        stage_logits, deltas = run(pyramid, rois, stage, method=head)
        logits += np.asarray(stage_logits) / 2
        dx, dy, dw, dh = np.moveaxis(np.asarray(deltas).reshape(2, -1, 4) / weights, -1, 0)
        x0, y0, x1, y1 = np.moveaxis(np.asarray(rois), -1, 0)
        x, y = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
        w, h = (x1 - x0) * np.exp(dw), (y1 - y0) * np.exp(dh)
        rois = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
        rois = jnp.asarray(rois.clip(0, [60, 64, 60, 64]), jnp.float32)
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.asarray(rois), scores.reshape(2, -1, 4)[..., 1:]


def test_a_cascade_refines_boxes_and_averages_logits():
    """Two stages with different deltas and logits, all detections kept, against each alone."""
    assert [stage.foreground_iou for stage in CASCADE_STAGES] == [0.5, 0.6, 0.7]
    assert [stage.loss_weight for stage in CASCADE_STAGES] == [1, 0.5, 0.25]
    assert [stage.coder_weights[0] for stage in CASCADE_STAGES] == [10, 20, 30]
    assert [stage.coder_weights[3] for stage in CASCADE_STAGES] == [5, 10, 15]
    detector, variables = _detector(ARCH, cascade=True, masks=True)
    options = {
        "nms_iou": 1.0,
        "score_threshold": 0.0,
        "max_detections": 60,
        "nms_candidates": 60,
    }
    stages = (CASCADE_STAGES[1], CASCADE_STAGES[0])
    box = dataclasses.replace(detector.options.box, **options, stages=stages)
    detector = Detector(ARCH, dataclasses.replace(detector.options, mask=None, box=box))
    params = {name: variables["params"][name] for name in ("backbone", "fpn", "rpn")}
    for name in ("box_head1", "box_head2"):
        head = dict(variables["params"][name])
        head["box"] = jax.tree.map(lambda leaf: 4 * leaf, head["box"])
        params[name] = head
    variables, batch = {**variables, "params": params}, _batch()
    detections = jax.jit(lambda v, b: detector.apply(v, b, None))(variables, batch)
    on_device = jax.tree.map(jnp.asarray, (variables, batch))
    boxes, scores = _step_by_step(detector, *on_device)
    for image in range(2):
        valid = np.asarray(detections["valid"][image])
        assert valid.sum() > 20
        for box, label, score in zip(
            *(np.asarray(detections[name][image])[valid] for name in ("boxes", "labels", "scores")),
            strict=True,
        ):
            near = np.abs(scores[image, :, label - 1] - score) < 1e-4
            assert np.abs(boxes[image][near] - box).max(1).min() < 0.05


def test_later_stages_of_a_cascade_require_more_overlap():
    """A RoI of IoU 0.55 is positive in the first stage, background in the second."""
    truth, roi = jnp.array([[[0.0, 0.0, 20.0, 20.0]]]), jnp.array([[[0.0, 0.0, 20.0, 11.0]]])
    keys, valid = jax.random.split(jax.random.key(0), 1), jnp.ones((1, 1), bool)
    labels = []
    for stage in CASCADE_STAGES[:2]:
        options = tiny_options().box
        samples = box_head.sample_rois(
            keys, roi, valid, truth, jnp.array([[3]]), valid, stage, options
        )
        is_roi = np.asarray(samples["valid"] & ~samples["is_truth"])
        labels.append(np.asarray(samples["labels"])[is_roi].tolist())
        assert np.asarray(samples["is_truth"] & samples["valid"]).sum() == 1
    assert labels == [[3], [0]]


def test_a_cascade_of_boxes_for_every_class_is_refused():
    options = tiny_options()
    with pytest.raises(UserError, match="class_agnostic"):
        dataclasses.replace(options, box=dataclasses.replace(options.box, stages=CASCADE_STAGES))


def _nas_fpn_by_hand(params, stats, c3, c4, c5):
    """Return the pyramid of figure 7, written out in NumPy."""

    def norm(x, name):
        scale, bias = params[f"{name}_bn"]["scale"], params[f"{name}_bn"]["bias"]
        mean, var = stats[f"{name}_bn"]["mean"], stats[f"{name}_bn"]["var"]
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def lateral(x, level):
        return norm(x @ params[f"lateral{level}_conv"]["kernel"][0, 0], f"lateral{level}")

    def conv(x, cell):
        kernel = params[f"stack1_cell{cell}_conv"]["kernel"]
        padded = np.pad(np.maximum(x, 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = x.shape[1:3]
        taps = [(i, j) for i in range(3) for j in range(3)]
        y = sum(padded[:, i : i + rows, j : j + columns] @ kernel[i, j] for i, j in taps)
        return norm(y, f"stack1_cell{cell}")

    def down(x, factor):
        batch, height, width, channels = x.shape
        shape = (batch, height // factor, factor, width // factor, factor, channels)
        return x.reshape(shape).max((2, 4))

    def up(x, factor):
        return x.repeat(factor, 1).repeat(factor, 2)

    def gp(finer, coarser):
        return coarser + finer / (1 + np.exp(-coarser.max((1, 2), keepdims=True)))

    p3, p4, p5 = lateral(c3, 3), lateral(c4, 4), lateral(c5, 5)
    p6 = down(p5, 2)
    p7 = down(p6, 2)
    first = conv(gp(p4, up(p6, 4)), 1)
    second = conv(p4 + first, 2)
    out3 = conv(p3 + up(second, 2), 3)
    out4 = conv(second + down(out3, 2), 4)
    out5 = conv(gp(down(out3, 4), down(out4, 2)) + p5, 5)
    out7 = conv(gp(down(second, 8), down(out5, 4)) + p7, 6)
    out6 = conv(gp(down(out5, 2), up(out7, 2)), 7)
    return out3, out4, out5, out6, out7


def test_nas_fpn_is_the_papers_pyramid():
    rng = np.random.default_rng(0)
    features = [rng.normal(0, 1, (2, 128 // s, 128 // s, 6)) for s in (4, 8, 16, 32)]
    features = tuple(jnp.asarray(x, jnp.float32) for x in features)
    neck = NASFPN(5, 1, 3)
    norm = Normalization(BN_RUNNING, jnp.ones(2))
    variables = randomised(neck.init(jax.random.key(0), features, norm))
    pyramid = jax.jit(lambda v, x: neck.apply(v, x, norm))(variables, features)
    params, stats = (jax.tree.map(np.asarray, variables[c]) for c in ("params", "batch_stats"))
    expected = _nas_fpn_by_hand(params, stats, *map(np.asarray, features[1:]))
    for level, expected_level in zip(pyramid, expected, strict=True):
        np.testing.assert_allclose(level, expected_level, atol=1e-4 * abs(expected_level).max())


def test_the_cost_of_nas_fpn_counts_every_cell_at_its_level():
    """On a canvas of 128 pixels p3 has 16 x 16 cells; with one channel each takes 9 products."""
    first, second = (
        detector_parts(ARCH, (128, 128), neck="nas_fpn", pyramid_channels=1, stacks=stacks)
        for stacks in (1, 2)
    )
    expected = sum(9 * (16 >> cell.level) ** 2 for cell in CELLS)
    assert second["nas_fpn"].flops - first["nas_fpn"].flops == expected


@pytest.mark.parametrize(
    ("arch", "freeze_at", "last"),
    [
        (ARCH, 0, None),
        (ARCH, 1, "stem"),
        (ARCH, 3, "stage2"),
        (MOBILE, 2, "stage2"),
        (MOBILE, 4, "stage5"),
        (MOBILE, 5, "tail"),
    ],
)
def test_stages_freeze_up_to_their_level(arch, freeze_at, last):
    order = ["stem", *(f"stage{i + 1}" for i in range(len(arch.widths)))]
    order += ["tail"] * (arch is MOBILE)
    freeze = FreezeOptions(freeze_at)
    frozen = [name for name in order if freeze.freezes_parameter(arch, (name, "conv1"))]
    assert frozen == (order[: order.index(last) + 1] if last else [])


@pytest.mark.parametrize("lowest_level", [2, 3])
def test_nas_fpn_keeps_the_sizes_of_its_levels(lowest_level):
    """Also on a canvas that is no multiple of the coarsest stride."""
    features = tuple(jnp.zeros((1, -(-72 // s), -(-104 // s), 8)) for s in (4, 8, 16, 32))
    neck = NASFPN(4, 1, lowest_level)
    norm = Normalization(BN_TRAIN, jnp.ones(1))
    pyramid, _ = jax.eval_shape(lambda: neck.init_with_output(jax.random.key(0), features, norm))
    strides = [2 ** (lowest_level + level) for level in range(5)]
    assert [level.shape for level in pyramid] == [
        (1, -(-72 // stride), -(-104 // stride), 4) for stride in strides
    ]


@pytest.mark.parametrize(
    ("spec", "freeze", "expected"),
    [
        (ARCH, FreezeOptions(2), {"stem", "stage1"}),
        (ARCH, FreezeOptions(0, freeze_norm=True), set()),
        (
            SupernetSpec("resnet_basic", ARCH.widths, ((1, 2), (1,), (1,), (1,))),
            FreezeOptions(2),
            {"stem", "stage1"},
        ),
    ],
    ids=["stages", "norm", "supernet"],
)
def test_frozen_parts_stay_bit_identical(spec, freeze, expected):
    """Parameters and statistics, under weight decay."""
    detector, mesh = Detector(spec, tiny_options(), freeze=freeze), make_mesh(2, 1)
    optimizer = make_optimizer(OptimizerOptions(weight_decay=0.1, warmup_steps=1), 2, 10)
    trainer = Trainer(detector, optimizer, mesh, seed=0)
    batch = put_batch(mesh, {**tiny_batch(2), "image_id": np.arange(2)})
    state = trainer.init()
    before = jax.device_get(state)
    for _ in range(2):
        choice = detector.sample(0, 0)
        state, _ = trainer.step(state, [batch], choice)
    for collection in ("params", "batch_stats"):
        for name, tree in before[collection]["backbone"].items():
            moved = largest_difference(tree, state[collection]["backbone"][name])
            if freeze.freeze_norm and collection == "batch_stats":
                assert moved == 0
            else:
                assert (moved == 0) == (name in expected), (collection, name)
    if freeze.freeze_norm:
        block = before["params"]["backbone"]["stage2"]["block1"]
        after = state["params"]["backbone"]["stage2"]["block1"]
        assert largest_difference(block["bn1"], after["bn1"]) == 0
        assert largest_difference(block["conv1"], after["conv1"]) > 0
