"""Detectors of format 1, and what a saved detector gives back."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from helpers import fresh_variables, randomised, tiny_options

from crnas_jax.arch.staged import Arch
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.export import format1
from crnas_jax.export.detector import load_detector, save_detector
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.box_head import CASCADE_STAGES, BoxHeadOptions
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.rcnn import DetectorOptions, NeckOptions

# Written by version 0.1 with seed 0: a cascade with masks on NAS-FPN, of two channels a stage, and
# what it detected in one image.
FORMAT_1 = pathlib.Path(__file__).with_name("format1") / "detector"


@pytest.fixture(scope="module")
def predictor():
    return load_detector(FORMAT_1)


def test_format_1_gives_the_options_it_was_saved_with(predictor):
    rpn = RPNOptions(
        (8.0, 16.0, 32.0, 64.0, 128.0), num_samples=8, pre_nms=(20, 20), post_nms=(10, 10)
    )
    box = BoxHeadOptions(
        stages=CASCADE_STAGES,
        class_agnostic=True,
        loss_beta=1.0,
        head_channels=4,
        pool_size=7,
        canonical_size=56.0,
        num_samples=8,
        score_threshold=0.01,
        nms_candidates=20,
        max_detections=5,
    )
    mask = MaskHeadOptions(channels=4, num_convolutions=1, pool_size=7)
    options = DetectorOptions(2, 4, rpn, box, mask, NeckOptions("nas_fpn", 1, 2))
    arch = Arch("resnet_basic", (1, 1, 1, 1), (1, 2, 1, 3), (2, 2, 2, 2))
    assert predictor.detector == Detector(arch, options)
    assert predictor.category_ids == [3, 7]
    assert predictor.class_names == ["cell", "disc"]


def test_format_1_gives_the_resize_rule():
    fields = format1.upgrade(json.loads((FORMAT_1 / "detector.json").read_text()))
    assert ImageSize(**fields["size"]) == ImageSize(min_size=48, max_size=64, multiple=64)


def test_format_1_detects_what_it_detected(predictor):
    image = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    (prediction,) = predictor.predict([image])
    expected = json.loads((FORMAT_1 / "expected.json").read_text())
    np.testing.assert_allclose(prediction.boxes, expected["boxes"], atol=1e-3)
    np.testing.assert_allclose(prediction.scores, expected["scores"], atol=1e-6)
    assert prediction.labels.tolist() == expected["labels"]
    assert prediction.category_ids.tolist() == [3] * 5
    assert prediction.mask_cells.shape == (5, 14, 14)


def test_a_saved_detector_is_read_back_equal(tmp_path):
    options = dataclasses.replace(tiny_options(2), mask=MaskHeadOptions(8, 1))
    arch = Arch("resnet_basic", (1, 1, 1, 1), (1, 2, 1, 3), (4, 4, 4, 4))
    detector = Detector(arch, options, precision="bfloat16")
    variables = randomised(fresh_variables(detector))
    categories = [{"id": 3, "name": "cell"}, {"id": 7, "name": "disc"}]
    save_detector(tmp_path, detector, variables, ImageSize(64, 96, 64), categories)
    fields = json.loads((tmp_path / "detector.json").read_text())
    assert fields["format"] == 2
    assert fields["size"] == {"min_size": 64, "max_size": 96, "multiple": 64}
    predictor = load_detector(tmp_path)
    assert predictor.detector == detector
    assert (predictor.category_ids, predictor.class_names) == ([3, 7], ["cell", "disc"])
    jax.tree.map(np.testing.assert_array_equal, predictor.variables, variables)


def test_old_names_in_the_present_format_and_unknown_formats_are_refused(tmp_path):
    fields = json.loads((FORMAT_1 / "detector.json").read_text())
    shutil.copytree(FORMAT_1, tmp_path / "copy")
    file = tmp_path / "copy" / "detector.json"
    for file_format, message in (
        (2, "fields: KeyError: .classes."),
        (3, "format 3, this version reads"),
    ):
        file.write_text(json.dumps({**fields, "format": file_format}))
        with pytest.raises(UserError, match=message):
            load_detector(tmp_path / "copy")
