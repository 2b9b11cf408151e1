"""torchvision's networks and ours are the same functions of the same weights.

What float32 makes of a deep network depends on the order of its sums, and that on the machine. So
the judge is torchvision's network in float64: ours may be a few times as far from it as
torchvision's own float32 is.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from interop import torchvision_reference as reference
from rounding import EPSILON, FACTOR, detection_errors

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


def _rms(values):
    return np.sqrt(np.mean(np.square(values)))


def _require_as_exact(ours, theirs, exact, terms=1):
    """Require errors against float64 of at most `FACTOR` times those of torchvision's float32.

    Root mean squares, to which all values add: the greatest errors of two float32 runs differ by
    more. In sums of many `terms` theirs may cancel. Each partial sum is rounded by up to half an
    epsilon of itself, and where these grow evenly the rounding comes to sqrt(terms) / 6 epsilons.
    """
    summation = np.sqrt(terms) / 6 * EPSILON * _rms(exact)
    assert _rms(ours - exact) <= FACTOR * _rms(theirs - exact) + summation


@pytest.mark.parametrize("name", torchvision.CLASSIFIERS)
def test_classifiers(name):
    theirs = reference.classifier(name, seed=1)
    ours, variables, ignored = torchvision.convert(_state(theirs), name)
    assert all(tensor.endswith("num_batches_tracked") for tensor in ignored)
    image = np.random.default_rng(0).normal(0, 1, (2, 64, 96, 3)).astype(np.float32)
    maps = jax.jit(functools.partial(_features, ours))(variables, image)
    head = variables["params"]["head"]
    logits = np.asarray(maps[-1]).mean((1, 2)) @ head["kernel"] + head["bias"]

    tensor = torch.from_numpy(image).permute(0, 3, 1, 2)
    results = []
    for model, images in ((theirs, tensor), (reference.double(theirs), tensor.double())):
        levels = reference.features(name, model, images)
        with torch.no_grad():
            results.append([*(level.permute(0, 2, 3, 1) for level in levels), model(images)])
    for triple in zip((*maps, logits), *results, strict=True):
        _require_as_exact(*map(np.asarray, triple))


def _photographs(shared_data, size, portrait, num_images, with_masks=False):
    """Return rows of photographs of one orientation, their batch, and torchvision's tensor."""
    folder = shared_data / "coco200"
    source = CocoSource(folder / "images", folder / "val.json", with_masks=with_masks)
    rows = DetectionRows(size, 8, mask_size=112 if with_masks else 0)
    turned = np.flatnonzero((source.sizes[:, 0] > source.sizes[:, 1]) == portrait)
    made = [rows(source[i], portrait, np.random.default_rng(0)) for i in turned[:num_images]]
    batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
    batch["weight"] = np.ones(num_images, np.float32)
    pixels, image_size = jnp.asarray(batch["image"]), jnp.asarray(batch["image_size"])
    image = np.array(preprocess(pixels, image_size, jnp.float32))
    tensor = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous()
    return batch, tensor, [tuple(size) for size in batch["image_size"].tolist()]


def _settled(errors):
    """Return root mean squares over all images without the worst 2 % of the detections.

    Near ties in suppression, or at the last place, may decide those differently.
    """
    rms = {}
    for name in errors[0]:
        squares = np.sort(np.concatenate([image[name] for image in errors]))
        rms[name] = np.sqrt(squares[: int(0.98 * len(squares))].mean())
    return rms


@pytest.mark.parametrize(
    ("name", "size", "num_proposals"),
    [
        ("fasterrcnn_resnet50_fpn", ImageSize(224, 320), None),
        ("maskrcnn_resnet50_fpn", ImageSize(192, 288), 300),
        ("maskrcnn_resnet50_fpn", ImageSize(256, 384), 300),
    ],
    ids=["faster", "mask", "mask, larger"],
)
def test_detections(shared_data, name, size, num_proposals):
    """On two photographs, portrait at the middle size; the first with proposals as by default."""
    theirs, ours, variables = _pair(name)
    if num_proposals:
        theirs.rpn._post_nms_top_n["testing"] = num_proposals
        rpn = dataclasses.replace(ours.options.rpn, post_nms=(num_proposals, num_proposals))
        ours = dataclasses.replace(ours, options=dataclasses.replace(ours.options, rpn=rpn))
    batch, tensor, sizes = _photographs(shared_data, size, size.min_size < 224, 2)
    detections = jax.device_get(jax.jit(lambda v, b: ours.apply(v, b, None))(variables, batch))
    ours_errors, theirs_errors = [], []
    for image, (rounded, exact) in enumerate(
        zip(
            reference.detect(theirs, tensor, sizes),
            reference.detect(reference.double(theirs), tensor.double(), sizes),
            strict=True,
        )
    ):
        valid = detections["valid"][image]
        mine = {key: values[image][valid] for key, values in detections.items() if key != "valid"}
        assert (np.diff(mine["scores"]) <= 0).all()
        assert len(exact["scores"]) >= 20
        assert abs(valid.sum() - len(exact["scores"])) <= 0.02 * len(exact["scores"])
        rounded, exact = (
            {key: values.numpy() for key, values in rows.items()} for rows in (rounded, exact)
        )
        assert set(mine) == set(exact)
        ours_errors.append(detection_errors(mine, exact))
        theirs_errors.append(detection_errors(rounded, exact))
    least = _settled(theirs_errors)
    for key, rms in _settled(ours_errors).items():
        assert rms <= FACTOR * least[key] + EPSILON, key


def test_pasted_masks():
    rng = np.random.default_rng(0)
    masks = rng.uniform(0, 1, (40, 28, 28)).astype(np.float32)
    corner = rng.uniform(-20, 90, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 80, (40, 2))], 1).astype(np.float32)
    boxes = boxes.clip(0, (120, 90, 120, 90)).astype(np.float32)
    ours = np.stack([paste(mask, box, 90, 120) for mask, box in zip(masks, boxes, strict=True)])
    theirs, exact = (
        reference.paste(*(torch.from_numpy(part).to(dtype) for part in (masks, boxes)), (90, 120))
        for dtype in (torch.float32, torch.float64)
    )
    _require_as_exact(ours, theirs.numpy(), exact.numpy())
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

    whole = np.zeros((2, 3, *tensor.shape[2:]), np.uint8)
    for image, place in np.ndindex(2, 3):
        x0, y0, x1, y1 = boxes[image, place].astype(int)
        whole[image, place, y0:y1, x0:x1] = crops[image, place]

    def reference_losses(model, dtype):
        targets = [
            {
                "boxes": torch.from_numpy(boxes[image]).to(dtype),
                "labels": torch.from_numpy(labels[image].astype(np.int64)),
                "masks": torch.from_numpy(whole[image]),
            }
            for image in range(2)
        ]
        given = list(torch.from_numpy(proposals).to(dtype))
        return reference.losses(model, tensor.to(dtype), sizes, targets, given)

    rounded = reference_losses(theirs, torch.float32)
    exact = reference_losses(reference.double(theirs), torch.float64)

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
    losses, _ = jax.jit(lambda v, b: ours.losses(v, b, None, keys))(variables, batch)
    names = {
        "loss_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_classifier": "loss_classifier",
        "loss_box": "loss_box_reg",
        "loss_mask": "loss_mask",
    }
    # Each relative to itself. The objectness of all anchors is the longest sum.
    exact = np.array([exact[name] for name in names.values()])
    theirs = np.array([rounded[name] for name in names.values()]) / exact
    mine = np.array([losses[name] for name in names]) / exact
    anchors = 2 * 3 * sum(224 // stride * 320 // stride for stride in (4, 8, 16, 32, 64))
    _require_as_exact(mine, theirs, np.ones(5), terms=anchors)
