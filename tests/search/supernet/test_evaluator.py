"""The batched evaluator: what paths share is run once, detections are those of one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import largest_difference, randomised, tiny_batch, tiny_options
from jax.sharding import PartitionSpec as P

from crnas_jax.evaluation import matching
from crnas_jax.evaluation.average_precision import match_tables
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.box_head import CASCADE_STAGES
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.layers import BN_COLLECT
from crnas_jax.models.rcnn import NeckOptions
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.search.supernet import memory
from crnas_jax.search.supernet.bn_calibration import calibrate
from crnas_jax.search.supernet.evaluator import SubnetEvaluator

GRIDS = ((1, 2), (1, 2), (1, 3), (1, 2))
SPEC = SupernetSpec("resnet_basic", (8, 8, 16, 16), GRIDS, (1, 2), stage_sharing="prefix")
OPTIONS = tiny_options()
MASKS = MaskHeadOptions(channels=8, convolutions=1)
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
}


def _model(spec, options):
    detector = Detector(spec, options)
    variables = jax.device_get(jax.jit(detector.init)(jax.random.key(0)))
    return detector, randomised(variables, scale=0.03)  # more would amplify the last digit


@pytest.fixture(scope="module")
def model():
    return _model(SPEC, OPTIONS)


def _batch(mesh, number=2, canvas=(64, 96), seed=0):
    batch = {**tiny_batch(number, *canvas, seed=seed), "image_id": np.arange(number)}
    return put_batch(mesh, batch)


def _choices(spec, number, seed=0):
    rng = np.random.default_rng(seed)
    choices = []
    for _ in range(number):
        depths = [int(rng.choice(grid)) for grid in spec.grids]
        blocks = sum(spec.arch(depths).stage_depths)
        choices.append(spec.choice(depths, rng.integers(len(spec.dilations), size=blocks)))
    return choices


def _alone(detector, bn):
    """One path by itself, as a program."""

    @jax.jit
    def alone(variables, batch, choice, stats):
        path = {n: banks.gather(t, detector.rows(t, choice)) for n, t in variables.items()}
        if stats is not None:
            path["batch_stats"] = stats
        return detector.apply(path, batch, choice, bn)

    return alone


def _assert_same(found, index, one):
    own = {name: leaf[index] for name, leaf in found.items()}
    assert set(own) == set(one)
    np.testing.assert_array_equal(own["valid"], one["valid"])
    np.testing.assert_array_equal(own["labels"], one["labels"])
    np.testing.assert_allclose(own["scores"], one["scores"], atol=1e-5)
    np.testing.assert_allclose(own["boxes"], one["boxes"], atol=1e-5 * 96)
    if "masks" in one:
        np.testing.assert_allclose(own["masks"], one["masks"], atol=1e-5)


def test_lists_of_any_length_share_the_programs_and_equal_one_by_one(model):
    detector, variables = model
    mesh = make_mesh(2, 1)
    evaluator = SubnetEvaluator(detector, mesh, chunk=4, slots=2)
    evaluator.detect(variables, _batch(mesh), _choices(SPEC, 5, seed=99))
    compiled, alone = evaluator.compilations, _alone(detector, "batch")
    for number in (1, 6, 21):
        choices, batch = _choices(SPEC, number, seed=number), _batch(mesh, seed=number)
        found = evaluator.detect(variables, batch, choices)
        assert found["boxes"].shape == (number, 2, 10, 4)
        assert found["valid"].any()
        for index in range(0, number, 3):
            # Statistics of a few cells each make more of the last digit than others would.
            one = alone(variables, batch, choices[index], None)
            np.testing.assert_allclose(found["scores"][index], one["scores"], atol=1e-4)
            np.testing.assert_array_equal(found["labels"][index], one["labels"])
    assert evaluator.compilations == compiled


def test_statistics_of_a_list_are_those_of_one_by_one_pooled(model):
    detector, variables = model
    mesh = make_mesh(2, 1)
    evaluator = SubnetEvaluator(detector, mesh, chunk=4, slots=1)
    batches = [_batch(mesh, seed=seed) for seed in range(3)]
    batches[1] = {**batches[1], "weight": np.array([1, 0], np.float32)}
    choices = _choices(SPEC, 18, seed=5)
    stats = calibrate(evaluator, variables, batches, choices)

    @jax.jit
    def moments(variables, batch, choice):
        path = {n: banks.gather(t, detector.rows(t, choice)) for n, t in variables.items()}
        updated = detector.module.apply(
            path, batch, choice, BN_COLLECT, method="features", mutable=["batch_stats"]
        )
        return updated[1]["batch_stats"]

    for index in (0, 7, 17):
        parts = [moments(variables, batch, choices[index]) for batch in batches]
        active = np.concatenate(
            [
                np.arange(places) < len(banks.stage_blocks(SPEC, choices[index], stage))
                for stage, places in enumerate(SPEC.places)
            ]
        )
        _assert_pooled(stats[index]["backbone"], [part["backbone"] for part in parts], active)
    found = evaluator.detect(variables, batches[0], choices[:4], stats[:4])
    alone = _alone(detector, "running")
    for index in range(4):
        _assert_same(found, index, alone(variables, batches[0], choices[index], stats[index]))


def _assert_pooled(found, parts, active):
    """Of 2, 1 and 2 images; places without a block say nothing."""
    weight, start = np.array([2, 1, 2]) / 5, 0
    layers = [("stem", "bn1", np.s_[:])]
    for stage, places in enumerate(SPEC.places):
        layers.append((f"stage{stage + 1}", "first", np.s_[:]))
        if places > 1:
            layers.append((f"stage{stage + 1}", "rest", active[start + 1 : start + places]))
        start += places
    for name, kind, rows in layers:
        own, others = found[name][kind], [part[name][kind] for part in parts]
        for bn in own if "mean" not in own else [None]:
            mine, theirs = (own, others) if bn is None else (own[bn], [o[bn] for o in others])
            mean = sum(w * np.asarray(o["mean"]) for w, o in zip(weight, theirs, strict=True))
            square = sum(
                w * (np.asarray(o["var"]) + np.asarray(o["mean"]) ** 2)
                for w, o in zip(weight, theirs, strict=True)
            )
            np.testing.assert_allclose(mine["mean"][rows], mean[rows], atol=2e-4)
            np.testing.assert_allclose(mine["var"][rows], (square - mean**2)[rows], atol=2e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_every_family_and_detector_equals_one_by_one(name):
    spec, options = OTHERS[name]
    detector, variables = _model(spec, options)
    mesh = make_mesh(2, 2)
    evaluator = SubnetEvaluator(detector, mesh)
    batch, choices = _batch(mesh, canvas=(64, 64)), _choices(spec, 4, seed=1)
    stats = calibrate(evaluator, variables, [batch], choices)
    for part, own in variables["batch_stats"].items():  # the neck's too, where it has some
        assert largest_difference(stats[0][part], own) > 0.01
    found, alone = evaluator.detect(variables, batch, choices, stats), _alone(detector, "running")
    assert found["valid"].any()
    for index, choice in enumerate(choices):
        _assert_same(found, index, alone(variables, batch, choice, stats[index]))


def test_eight_devices_find_what_one_finds(model):
    detector, variables = model
    choices, (one, eight) = _choices(SPEC, 3), (make_mesh(8, devices) for devices in (1, 8))
    found = [
        SubnetEvaluator(detector, mesh).detect(
            variables, _batch(mesh, number=8, canvas=(64, 64)), choices
        )
        for mesh in (one, eight)
    ]
    assert largest_difference(found[0]["scores"], found[1]["scores"]) < 1e-4
    # Objects where the first found something, so that there is an AP.
    boxes, ids = found[0]["boxes"][0, :, :4], np.arange(8)
    annotations = [
        {
            "id": 4 * image + place + 1,
            "image_id": image,
            "category_id": int(found[0]["labels"][0, image, place]) or 1,
            "bbox": [*map(float, box[:2]), *map(float, np.maximum(box[2:] - box[:2], 1) * 1.2)],
            "iscrowd": 0,
        }
        for image in range(8)
        for place, box in enumerate(boxes[image])
    ]
    categories = [{"id": label} for label in range(1, OPTIONS.classes + 1)]
    images = [{"id": image} for image in range(8)]
    truth = matching.GroundTruth(
        {"images": images, "categories": categories, "annotations": annotations}
    )
    aps = [[t.metrics()["AP"] for t in match_tables(truth, some, ids)] for some in found]
    assert max(aps[0]) > 0.05
    np.testing.assert_allclose(*aps, atol=1e-3)


def test_the_programs_export_for_accelerators(model):
    detector, variables = model
    mesh, platforms = make_mesh(8, 8), ("tpu", "cuda")
    evaluator = SubnetEvaluator(detector, mesh, slots=1)
    batch, choices = _batch(mesh, number=8, canvas=(64, 64)), _choices(SPEC, 4)
    state, _ = jax.eval_shape(
        lambda variables, batch: evaluator._begin(variables, batch, None, "batch"), variables, batch
    )
    steps = evaluator.schedule(choices).steps(0, 4)
    rows = (jax.tree.map(lambda *leaves: np.stack(leaves), *choices), steps, None)
    exported = jax.export.export(evaluator._detect, platforms=platforms)(
        variables, batch, state, rows, bn="batch", masks=False
    )
    assert exported.platforms == platforms
    assert exported.nr_devices == 8
    truth = {
        "boxes": np.zeros((8, 8, 4)),
        "labels": np.zeros((8, 8), np.int32),
        "crowd": np.zeros((8, 8), bool),
        "counted": np.zeros((8, 8, 4), bool),
    }
    found = np.zeros((4, 8, 10, 4), np.float32), np.zeros((4, 8, 10), bool)
    with jax.enable_x64(True):
        jax.export.export(matching._match, platforms=platforms)(
            *found, np.zeros((4, 8, 10), np.int32), truth, np.ones((8, 2), np.float32), xywh=False
        )


def test_the_size_of_a_call_follows_the_memory():
    class Accelerator:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 200}

    assert [memory.fitting(Accelerator(), one) for one in (10, 100, 10**6)] == [32, 3, 1]


def test_memory_of_a_mesh_is_that_of_all_its_devices():
    def double(x):
        return jnp.sin(x) * 2 + x

    x, mesh = np.zeros((8, 1000), np.float32), make_mesh(8, 8)
    mapped = jax.shard_map(double, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    whole = memory.peak_bytes(double, x)
    assert whole <= memory.peak_bytes(mapped, x) <= 2 * whole
    assert memory.fitting(jax.devices("cpu")[0], 10) == 1


def test_peak_memory_of_a_function():
    def function(x):
        y = x + 1  # 4 kB, kept to the end
        return (jax.lax.scan(lambda c, _: (c * 2, None), y, None, 3)[0] + y).sum()

    peak = memory.peak_bytes(function, np.zeros(1000, np.float32))
    assert 8_000 <= peak <= 16_000
