"""torchvision's networks and ours are the same functions of the same weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from interop import torchvision_reference as reference

from crnas_jax.data.coco import CocoSource
from crnas_jax.data.masks import paste
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.interop import torchvision
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.layers import BN_RUNNING, Normalization, preprocess


def _state(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@functools.cache
def _pair(name, seed=0):
    """torchvision's detector, ours, and our variables."""
    theirs = reference.detector(name, seed)
    ours, variables, _ = torchvision.convert(_state(theirs), name)
    return theirs, ours, variables


def _features(model, variables, image):
    def backbone(module):
        return module.backbone(image, None, Normalization(BN_RUNNING, jnp.ones(len(image))))

    return model.module.apply(variables, method=backbone)


@pytest.mark.parametrize("name", torchvision.CLASSIFIERS)
def test_classifiers(name):
    theirs = reference.classifier(name, seed=1)
    ours, variables, ignored = torchvision.convert(_state(theirs), name)
    assert all(tensor.endswith("num_batches_tracked") for tensor in ignored)
    image = np.random.default_rng(0).normal(0, 1, (2, 64, 96, 3)).astype(np.float32)
    tensor = torch.from_numpy(image).permute(0, 3, 1, 2)
    expected = reference.features(name, theirs, tensor)
    found = jax.jit(functools.partial(_features, ours))(variables, image)
    for level, theirs_level in zip(found, expected, strict=True):
        theirs_level = theirs_level.permute(0, 2, 3, 1).numpy()
        assert abs(level - theirs_level).max() / abs(theirs_level).max() < 1e-4
    head = variables["params"]["head"]
    logits = np.asarray(found[-1]).mean((1, 2)) @ head["kernel"] + head["bias"]
    with torch.no_grad():
        np.testing.assert_allclose(logits, theirs(tensor).numpy(), rtol=1e-3, atol=1e-4)


def _photographs(shared_data, size, portrait, number, with_masks=False):
    """Rows of photographs of one orientation, their batch, and torchvision's tensor."""
    folder = shared_data / "coco200"
    source = CocoSource(folder / "images", folder / "val.json", with_masks=with_masks)
    rows = DetectionRows(size, 8, mask_size=112 if with_masks else 0)
    turned = np.flatnonzero((source.sizes[:, 0] > source.sizes[:, 1]) == portrait)
    made = [rows(source[i], portrait, np.random.default_rng(0)) for i in turned[:number]]
    batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
    batch["weight"] = np.ones(number, np.float32)
    pixels, image_size = jnp.asarray(batch["image"]), jnp.asarray(batch["image_size"])
    image = np.array(preprocess(pixels, image_size, jnp.float32))
    tensor = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous()
    return batch, tensor, [tuple(size) for size in batch["image_size"].tolist()]


def _require_same(found, expected):
    """The same detections but for one pair of neighbours, whose scores may have changed places."""
    number = int(found["valid"].sum())
    assert number == len(expected["scores"]) >= 20
    np.testing.assert_allclose(found["scores"][:number], expected["scores"], atol=1e-4)
    order = []
    for index in range(number):
        same = (found["labels"][index] == expected["labels"]) & (
            abs(found["boxes"][index] - expected["boxes"]).max(1) < 0.05
        )
        assert same.any(), index
        order.append(min(np.flatnonzero(same), key=lambda place, i=index: abs(place - i)))
    moved = [index for index, place in enumerate(order) if index != place]
    assert sorted(order) == list(range(number))
    assert len(moved) <= 2
    if "masks" in expected:
        assert abs(found["masks"][:number] - expected["masks"][order]).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fasterrcnn_resnet50_fpn", ImageSize(224, 320)),
        ("maskrcnn_resnet50_fpn", ImageSize(192, 288)),
        ("maskrcnn_resnet50_fpn", ImageSize(256, 384)),
    ],
    ids=["faster", "mask", "mask, larger"],
)
def test_detections(shared_data, name, size):
    """On two photographs, portrait at the middle size."""
    theirs, ours, variables = _pair(name)
    batch, tensor, sizes = _photographs(shared_data, size, size.min_size < 224, 2)
    expected = reference.detect(theirs, tensor, sizes)
    found = jax.jit(lambda v, b: ours.apply(v, b, None))(variables, batch)
    for index, one in enumerate(expected):
        one = {key: value.numpy() for key, value in one.items()}
        _require_same({key: np.asarray(value[index]) for key, value in found.items()}, one)


def test_pasted_masks():
    rng = np.random.default_rng(0)
    masks = rng.uniform(0, 1, (40, 28, 28)).astype(np.float32)
    corner = rng.uniform(-20, 90, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 80, (40, 2))], 1).astype(np.float32)
    boxes = boxes.clip(0, (120, 90, 120, 90)).astype(np.float32)
    theirs = reference.paste(torch.from_numpy(masks), torch.from_numpy(boxes), (90, 120)).numpy()
    ours = np.stack([paste(mask, box, 90, 120) for mask, box in zip(masks, boxes, strict=True)])
    assert abs(ours - theirs).max() < 1e-3
    assert (ours.max((1, 2)) > 0).sum() > 30


def test_losses(shared_data):
    """Everything sampled, proposals given. Objects have the size of the stored masks, so that these
    are the bitmaps; other sizes are only as fine as their 112 x 112 cells."""
    theirs, ours, variables = _pair("maskrcnn_resnet50_fpn")
    batch, tensor, sizes = _photographs(shared_data, ImageSize(224, 320), False, 2, with_masks=True)
    rng = np.random.default_rng(1)
    boxes = np.stack([rng.integers(0, side - 112, (2, 3)) for side in (280, 160)], -1)
    boxes = np.concatenate([boxes, boxes + 112], -1).astype(np.float32)
    crops = (rng.uniform(0, 1, (2, 3, 112, 112)) > 0.5).astype(np.uint8)
    labels = rng.integers(1, 91, (2, 3)).astype(np.int32)
    near = boxes[:, rng.integers(0, 3, 40)] + rng.uniform(-12, 12, (2, 40, 4))
    corner = rng.uniform(0, 150, (2, 20, 2))
    anywhere = np.concatenate([corner, corner + rng.uniform(10, 100, (2, 20, 2))], -1)
    proposals = np.concatenate([near, anywhere], 1).astype(np.float32)

    targets = []
    for image in range(2):
        masks = np.zeros((3, *tensor.shape[2:]), np.uint8)
        for mask, box, crop in zip(masks, boxes[image].astype(int), crops[image], strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = crop
        targets.append(
            {
                "boxes": torch.from_numpy(boxes[image]),
                "labels": torch.from_numpy(labels[image].astype(np.int64)),
                "masks": torch.from_numpy(masks),
            }
        )
    expected = reference.losses(theirs, tensor, sizes, targets, list(torch.from_numpy(proposals)))

    truth = {"valid": np.ones((2, 3), bool), "crowd": np.zeros((2, 3), bool)}
    given = {"proposals": proposals, "proposals_valid": np.ones(proposals.shape[:2], bool)}
    batch |= {"boxes": boxes, "labels": labels, "masks": crops, **truth, **given}
    options = ours.options
    options = dataclasses.replace(
        options,
        rpn=dataclasses.replace(options.rpn, num_samples=40000),
        box=dataclasses.replace(options.box, num_samples=200, positive_fraction=0.5),
    )
    ours = dataclasses.replace(ours, options=options, freeze=FreezeOptions(freeze_norm=True))
    keys = jax.random.split(jax.random.key(0), 2)
    found, _ = jax.jit(lambda v, b: ours.losses(v, b, None, keys))(variables, batch)
    names = {
        "loss_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_classifier": "loss_classifier",
        "loss_box": "loss_box_reg",
        "loss_mask": "loss_mask",
    }
    for own, other in names.items():
        assert float(found[own]) == pytest.approx(expected[other], rel=1e-4), own
