"""torchvision's RetinaNets and ours are the same functions of the same weights (float64 judges)."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from interop import torchvision_reference as reference
from interop.test_torchvision import _photographs, _require_as_exact, _settled, _state
from rounding import EPSILON, FACTOR, detection_errors

from crnas_jax.data.transforms import ImageSize
from crnas_jax.interop import torchvision
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.models.retinanet import RetinaNetOptions

NAMES = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")


@functools.cache
def _pair(name):
    theirs = reference.retinanet(name, seed=0)
    ours, variables, ignored = torchvision.convert(_state(theirs), name)
    assert all(tensor.endswith("num_batches_tracked") for tensor in ignored)
    assert (ours.options.num_classes, ours.options.max_detections) == (91, 300)
    # So many that none is left out for boxes without an area.
    theirs.detections_per_img = 600
    head = dataclasses.replace(ours.options.head, max_detections=600)
    options = dataclasses.replace(ours.options, head=head)
    return theirs, dataclasses.replace(ours, options=options), variables


@pytest.mark.parametrize("name", NAMES)
def test_detections_and_losses(shared_data, name):
    """On two photographs, the losses with objects of which one is an image's only one."""
    theirs, ours, variables = _pair(name)
    batch, tensor, sizes = _photographs(shared_data, ImageSize(192, 256), False, 2)
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 100, (2, 3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 90, (2, 3, 2))], -1).astype(np.float32)
    labels = rng.integers(1, 91, (2, 3)).astype(np.int32)
    valid = np.array([[True, True, True], [False, True, False]])
    batch |= {"boxes": boxes, "labels": labels + 1, "valid": valid}  # their class 0 is our label 1
    batch["crowd"] = np.zeros((2, 3), bool)
    ours = dataclasses.replace(ours, freeze=FreezeOptions(freeze_norm=True))
    keys = jax.random.split(jax.random.key(0), 2)
    detections, (losses, _) = jax.device_get(
        jax.jit(lambda v, b: (ours.apply(v, b, None), ours.losses(v, b, None, keys)))(
            variables, batch
        )
    )

    ours_errors, theirs_errors, exact_losses, rounded_losses = [], [], {}, {}
    rounded = reference.retina_detect(theirs, tensor, sizes)
    double = reference.double(theirs)
    exact = reference.retina_detect(double, tensor.double(), sizes)
    for image in range(2):
        shown = detections["valid"][image]
        mine = {key: values[image][shown] for key, values in detections.items() if key != "valid"}
        mine["labels"] = mine["labels"] - 1
        rows = []
        for found in (rounded, exact):
            # torchvision keeps boxes that lie beside the image; clipped they have no area.
            whole = (found[image]["boxes"][:, 2:] - found[image]["boxes"][:, :2] > 0.01).all(1)
            rows.append({key: values[whole].numpy() for key, values in found[image].items()})
        assert len(rows[1]["scores"]) >= 20
        assert abs(shown.sum() - len(rows[1]["scores"])) <= 0.02 * len(rows[1]["scores"])
        ours_errors.append(detection_errors(mine, rows[1]))
        theirs_errors.append(detection_errors(*rows))
    least = _settled(theirs_errors)
    for key, rms in _settled(ours_errors).items():
        assert rms <= FACTOR * least[key] + EPSILON, key

    for model, dtype, values in (
        (theirs, torch.float32, rounded_losses),
        (double, torch.float64, exact_losses),
    ):
        targets = [
            {
                "boxes": torch.from_numpy(boxes[image][valid[image]]).to(dtype),
                "labels": torch.from_numpy(labels[image][valid[image]].astype(np.int64)),
            }
            for image in range(2)
        ]
        values |= reference.retina_losses(model, tensor.to(dtype), sizes, targets)
    names = {"loss_classifier": "classification", "loss_box": "bbox_regression"}
    exact_values = np.array([exact_losses[name] for name in names.values()])
    theirs_values = np.array([rounded_losses[name] for name in names.values()]) / exact_values
    mine = np.array([losses[name] for name in names]) / exact_values
    num_terms = 91 * 9 * sum(192 // stride * 256 // stride for stride in (8, 16, 32, 64, 128))
    _require_as_exact(mine, theirs_values, np.ones(2), terms=num_terms)


def test_old_names_are_converted():
    state = _state(reference.retinanet(NAMES[0], seed=0, classes=4))
    old = {
        "head.classification_head.conv.2.0.weight": "head.classification_head.conv.4.weight",
        "backbone.fpn.inner_blocks.0.0.bias": "backbone.fpn.inner_blocks.0.bias",
    }
    renamed = {old.get(name, name): value for name, value in state.items()}
    model, variables, _ = torchvision.convert(renamed, NAMES[0])
    assert model.options.num_classes == 4
    kernel = variables["params"]["head"]["towers"]["class_conv3"]["kernel"]
    np.testing.assert_array_equal(kernel, state[next(iter(old))].transpose(2, 3, 1, 0))
    ids, names = torchvision.categories(RetinaNetOptions(91))
    assert (ids[0], names[0], names[1], len(names)) == (0, "unused 0", "person", 91)
    assert torchvision.categories(RetinaNetOptions(2)) == ([0, 1], ["class 0", "class 1"])
    ids, names = torchvision.categories(DetectorOptions(91))  # not COCO's
    assert (ids[0], names[0]) == (1, "class 1")
