"""Detectors learn eight photographs by heart: `make test-full`."""

import dataclasses

import numpy as np
import pytest
from crnas_jax.evaluation.detect import detect, metrics

from crnas_jax.arch.staged import Arch
from crnas_jax.data.coco import CocoSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.box_head import CASCADE_STAGES, BoxHeadOptions
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.training.loop import TrainOptions, train
from crnas_jax.training.optimizer import OptimizerOptions

pytestmark = pytest.mark.campaign


class _Some:
    """Some images of a source."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices
        self.sizes, self.category_ids = source.sizes[indices], source.category_ids
        self.set_apart = source.set_apart
        kept = set(source.image_ids[indices].tolist())
        self.coco = {
            **source.coco,
            "images": [image for image in source.coco["images"] if image["id"] in kept],
            "annotations": [a for a in source.coco["annotations"] if a["image_id"] in kept],
        }

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        return self._source[self._indices[index]]


def _found(detector, source, size, steps, rate, folder):
    """Metrics on the images that were trained on."""
    optimizer = OptimizerOptions(rate, schedule="cosine", warmup_steps=40, clip=10.0)
    options = TrainOptions(steps, 8, optimizer, log_every=20, devices=1)
    mask_size = 56 if detector.options.mask else 0
    rows = DetectionRows(size, max_objects=32, mask_size=mask_size)
    variables = train(detector, source, rows, options, folder, "overfit")
    results = detect(detector, variables, source, size, 8, devices=1)
    return metrics(source, results, with_masks=bool(mask_size))


def test_faster_rcnn(shared_data, tmp_path):
    folder = shared_data / "bccd"
    source = _Some(CocoSource(folder / "images", folder / "train.json"), np.arange(8))
    rpn = RPNOptions(
        (8.0, 16.0, 32.0, 64.0, 128.0), samples=128, pre_nms=(200, 200), post_nms=(150, 100)
    )
    box = BoxHeadOptions(head_channels=128, samples=64, canonical_size=56.0, nms_candidates=200)
    arch = Arch("resnet_basic", (1, 1, 1, 1), widths=(16, 32, 64, 64))
    detector = Detector(arch, DetectorOptions(3, 32, rpn, box))
    assert _found(detector, source, ImageSize(96, 128), 260, 0.005, tmp_path)["AP50"] >= 0.9


def _large_objects(source):
    """The first eight landscapes with one to five objects, none below 32 x 32 pixels."""
    chosen = []
    for index in range(len(source)):
        record = source[index]
        few = 0 < len(record["boxes"]) <= 5 and not record["crowd"].any()
        landscape = record["image"].shape[1] >= record["image"].shape[0]
        if few and landscape and (record["area"] > 32**2).all():
            chosen.append(index)
        if len(chosen) == 8:
            return np.array(chosen)
    raise AssertionError("too few images")


@pytest.mark.parametrize("cascade", [False, True], ids=["mask", "cascade mask"])
def test_masks(shared_data, tmp_path, cascade):
    folder = shared_data / "coco200"
    source = CocoSource(folder / "images", folder / "train.json", with_masks=True)
    source = _Some(source, _large_objects(source))
    rpn = RPNOptions(
        (16.0, 32.0, 64.0, 128.0, 256.0), samples=128, pre_nms=(200, 200), post_nms=(150, 100)
    )
    box = BoxHeadOptions(head_channels=128, samples=32, canonical_size=112.0, nms_candidates=200)
    if cascade:
        stages = {"stages": CASCADE_STAGES, "class_agnostic": True, "loss_beta": 1.0}
        box = dataclasses.replace(box, **stages)
    arch = Arch("resnet_basic", (1, 1, 1, 1), widths=(16, 32, 64, 128))
    detector = Detector(arch, DetectorOptions(80, 48, rpn, box, MaskHeadOptions(64, 3)))
    # 400 steps were too near the threshold: 0.80 to 0.86 with the rounding of the machine at hand.
    rate = 0.0075 if cascade else 0.005
    found = _found(detector, source, ImageSize(192, 256), 500, rate, tmp_path)
    assert found["AP50"] >= 0.9
    assert found["segm"]["AP50"] >= 0.8
