"""The batched evaluator: its detections and statistics are those of each subnet by itself."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import fresh_variables, largest_difference, randomised, tiny_batch, tiny_options
from rounding import EPSILON, FACTOR, detection_errors, nudged

from crnas_jax.evaluation import matching
from crnas_jax.evaluation.average_precision import match_tables
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.box_head import CASCADE_STAGES
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.layers import BN_COLLECT
from crnas_jax.models.rcnn import NeckOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.search.supernet.bn_calibration import calibrate
from crnas_jax.search.supernet.evaluator import SubnetEvaluator

GRIDS = ((1, 2), (1,), (1, 3), (1, 2))
SPEC = SupernetSpec("resnet_basic", (8, 8, 16, 16), GRIDS, (1, 2), stage_sharing="prefix")
OPTIONS = tiny_options()
MASKS = MaskHeadOptions(channels=8, num_convolutions=1)
CASCADE = dataclasses.replace(OPTIONS.box, stages=CASCADE_STAGES, class_agnostic=True)
OTHERS = {
    "mask_rcnn": (
        SupernetSpec("resnet_bottleneck", (4, 4, 8, 8), ((1, 2), (1, 2), (1,), (1,))),
        dataclasses.replace(OPTIONS, mask=MASKS),
    ),
    "cascade_rcnn": (
        SupernetSpec("resnext_32x4d", (16, 16, 16, 16), ((1, 2), (1,), (1,), (1,)), (1, 3)),
        dataclasses.replace(OPTIONS, box=CASCADE),
    ),
    "nas_fpn": (
        SupernetSpec(
            "mobilenet_v2", (4, 4, 8, 8, 8, 16, 16), ((1, 2), (1,), (1,), (1,), (1, 2)), (1, 2)
        ),
        dataclasses.replace(OPTIONS, neck=NeckOptions("nas_fpn", stacks=1, lowest_level=2)),
    ),
    # Its towers have batch normalisation of their own.
    "retinanet": (
        SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1, 2), (1,), (1,), (1, 2)), (1, 2)),
        RetinaNetOptions(
            3, 16, RetinaHeadOptions("spinenet", 1, max_detections=10, anchor_sizes=(16.0,) * 5)
        ),
    ),
}


def _model(spec, options):
    detector = Detector(spec, options)
    variables = fresh_variables(detector)
    return detector, randomised(variables, scale=0.03)  # more would amplify the last digit


@pytest.fixture(scope="module")
def model():
    return _model(SPEC, OPTIONS)


def _batch(mesh, num_images=2, canvas=(64, 96), seed=0):
    batch = {**tiny_batch(num_images, *canvas, seed=seed), "image_id": np.arange(num_images)}
    return put_batch(mesh, batch)


def _choices(spec, count, seed=0):
    rng = np.random.default_rng(seed)
    choices = []
    for _ in range(count):
        depths = [int(rng.choice(grid)) for grid in spec.grids]
        operations = rng.integers(len(spec.dilations), size=spec.arch(depths).num_blocks)
        choices.append(spec.choice(depths, operations))
    return choices


def _single_subnet(detector, bn):
    """Return a program that runs one path by itself."""

    @jax.jit
    def run(variables, batch, choice, stats):
        path = detector.path(variables, choice)
        if stats is not None:
            path["batch_stats"] = stats
        return detector.apply(path, batch, choice, bn)

    return run


def _valid_detections(detections, image):
    valid = np.asarray(detections["valid"][image])
    return {name: np.asarray(leaf[image])[valid] for name, leaf in detections.items()}


def _square_errors(detections, expected):
    """Return mean square errors by name, for each detection expected in all images."""
    images = [
        detection_errors(_valid_detections(detections, image), _valid_detections(expected, image))
        for image in range(len(expected["valid"]))
    ]
    return {name: np.concatenate([image[name] for image in images]) for name in images[0]}


def _assert_same(detections, index, single, variables, batch, choice, stats):
    """Compare a path in a list with the same path by itself.

    They may be off by `FACTOR` times what weights and statistics that are an epsilon off change.
    Each detection must have a partner; those of near ties may change places.
    """
    actual = {name: leaf[index] for name, leaf in detections.items()}
    expected = single(variables, batch, choice, stats)
    assert set(actual) == set(expected)
    np.testing.assert_array_equal(actual["valid"], expected["valid"])
    assert (np.diff(np.where(actual["valid"], actual["scores"], -1.0)) <= 0).all()
    errors = _square_errors(actual, expected)
    others = [
        single(nudged(variables, seed), batch, choice, nudged(stats, seed)) for seed in range(3)
    ]
    rounding = [_square_errors(other, expected) for other in others]
    for name, squares in errors.items():
        largest = max(other[name][np.isfinite(other[name])].max() for other in rounding)
        assert np.sqrt(squares.max()) <= FACTOR * np.sqrt(largest) + EPSILON, name


def test_lists_of_any_length_share_the_programs_and_equal_single_subnets(model):
    detector, variables = model
    mesh = make_mesh(2, 1)
    evaluator = SubnetEvaluator(detector, mesh, max_subnets_per_call=4, num_slots=2)
    evaluator.detect(variables, _batch(mesh), _choices(SPEC, 5, seed=99))
    num_compilations, single = evaluator.compilations, _single_subnet(detector, "batch")
    for count in (1, 6, 21):
        choices, batch = _choices(SPEC, count, seed=count), _batch(mesh, seed=count)
        detections = evaluator.detect(variables, batch, choices)
        assert detections["boxes"].shape == (count, 2, 10, 4)
        assert detections["valid"].any()
        for index in range(0, count, 3):
            _assert_same(detections, index, single, variables, batch, choices[index], None)
    assert evaluator.compilations == num_compilations


def test_statistics_of_a_list_are_those_of_single_subnets_pooled(model):
    detector, variables = model
    mesh = make_mesh(2, 1)
    evaluator = SubnetEvaluator(detector, mesh, max_subnets_per_call=4, num_slots=1)
    batches = [_batch(mesh, seed=seed) for seed in range(3)]
    batches[1] = {**batches[1], "weight": np.array([1, 0], np.float32)}
    choices = _choices(SPEC, 18, seed=5)
    stats = calibrate(evaluator, variables, batches, choices)

    @jax.jit
    def moments(variables, batch, choice):
        _, updated = detector.module.apply(
            detector.path(variables, choice),
            batch,
            choice,
            BN_COLLECT,
            method="features",
            mutable=["batch_stats"],
        )
        return updated["batch_stats"]["backbone"]

    for index in (0, 7, 17):
        batch_moments = [moments(variables, batch, choices[index]) for batch in batches]
        active = np.concatenate(
            [
                np.arange(places) < len(banks.block_operations(SPEC, choices[index], stage))
                for stage, places in enumerate(SPEC.places)
            ]
        )
        _assert_pooled(stats[index]["backbone"], batch_moments, active)
    detections = evaluator.detect(variables, batches[0], choices[:4], stats[:4])
    single = _single_subnet(detector, "running")
    for index in range(4):
        _assert_same(detections, index, single, variables, batches[0], choices[index], stats[index])


def _assert_pooled(stats, batch_moments, active):
    """Compare with moments of batches of 2, 1 and 2 images, at places that hold a block."""
    weights, start = np.array([2, 1, 2]) / 5, 0
    layers = [("stem", "bn1", np.s_[:])]
    for stage, places in enumerate(SPEC.places):
        layers.append((f"stage{stage + 1}", "first", np.s_[:]))
        if places > 1:
            layers.append((f"stage{stage + 1}", "rest", active[start + 1 : start + places]))
        start += places
    for name, kind, rows in layers:
        pooled = {kind: stats[name][kind]} if name == "stem" else stats[name][kind]
        for bn, actual in pooled.items():
            parts = [tree[name] if name == "stem" else tree[name][kind] for tree in batch_moments]
            means = [np.asarray(part[bn]["mean"]) for part in parts]
            variances = [np.asarray(part[bn]["var"]) for part in parts]
            mean = sum(w * m for w, m in zip(weights, means, strict=True))
            square = sum(w * (v + m**2) for w, v, m in zip(weights, variances, means, strict=True))
            np.testing.assert_allclose(actual["mean"][rows], mean[rows], atol=2e-4)
            np.testing.assert_allclose(actual["var"][rows], (square - mean**2)[rows], atol=2e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_every_family_and_detector_equals_single_subnets(name):
    spec, options = OTHERS[name]
    detector, variables = _model(spec, options)
    mesh = make_mesh(2, 2)
    evaluator = SubnetEvaluator(detector, mesh)
    batch, choices = _batch(mesh, canvas=(64, 64)), _choices(spec, 4, seed=1)
    stats = calibrate(evaluator, variables, [batch], choices)
    for part, averages in variables["batch_stats"].items():  # the neck's too, where it has some
        assert largest_difference(stats[0][part], averages) > 0.01
    detections = evaluator.detect(variables, batch, choices, stats)
    single = _single_subnet(detector, "running")
    assert detections["valid"].any()
    for index, choice in enumerate(choices):
        _assert_same(detections, index, single, variables, batch, choice, stats[index])


def test_eight_devices_detect_what_one_detects(model):
    detector, variables = model
    choices, ids = _choices(SPEC, 3), np.arange(8)
    one, eight = (
        SubnetEvaluator(detector, mesh).detect(
            variables, _batch(mesh, num_images=8, canvas=(64, 64)), choices
        )
        for mesh in (make_mesh(8, num_devices) for num_devices in (1, 8))
    )
    assert largest_difference(one["scores"], eight["scores"]) < 1e-4
    # Objects where the first subnet detects some, so that its AP is not 0.
    boxes, labels = one["boxes"][0, :, :4], one["labels"][0]
    annotations = [
        {
            "id": 4 * image + place + 1,
            "image_id": image,
            "category_id": int(labels[image, place]) or 1,
            "bbox": [*map(float, box[:2]), *map(float, np.maximum(box[2:] - box[:2], 1) * 1.2)],
            "iscrowd": 0,
        }
        for image in range(8)
        for place, box in enumerate(boxes[image])
    ]
    categories = [{"id": label} for label in range(1, OPTIONS.num_classes + 1)]
    images = [{"id": image} for image in range(8)]
    ground_truth = matching.GroundTruth(
        {"images": images, "categories": categories, "annotations": annotations}
    )
    aps = [
        [table.metrics()["AP"] for table in match_tables(ground_truth, detections, ids)]
        for detections in (one, eight)
    ]
    assert max(aps[0]) > 0.05
    np.testing.assert_allclose(*aps, atol=1e-3)


def test_the_programs_export_for_accelerators(model):
    detector, variables = model
    mesh, platforms = make_mesh(8, 8), ("tpu", "cuda")
    evaluator = SubnetEvaluator(detector, mesh, max_subnets_per_call=4, num_slots=1)
    batch, choices = _batch(mesh, num_images=8, canvas=(64, 64)), _choices(SPEC, 4)

    @jax.jit
    def detect(variables, batch):
        return [part for _, part in evaluator.detect_in_chunks(variables, batch, choices)]

    exported = jax.export.export(detect, platforms=platforms)(variables, batch)
    assert exported.platforms == platforms
    assert exported.nr_devices == 8
    objects = {
        "boxes": np.zeros((8, 8, 4)),
        "labels": np.zeros((8, 8), np.int32),
        "crowd": np.zeros((8, 8), bool),
        "counted": np.zeros((8, 8, 4), bool),
    }
    shape = (4, 8, 10)
    boxes, valid = np.zeros((*shape, 4), np.float32), np.zeros(shape, bool)
    labels, scale = np.zeros(shape, np.int32), np.ones((8, 2), np.float32)
    with jax.enable_x64(True):
        match = jax.export.export(jax.jit(matching.match), platforms=platforms)
        assert match(boxes, valid, labels, objects, scale).platforms == platforms
