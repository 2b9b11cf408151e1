"""The batched evaluator: one compilation a canvas, and the same detections as one by one."""

import jax
import numpy as np
import pytest
from conftest import greatest_difference, randomised, tiny_batch, tiny_options

from crnas_jax.models import banks
from crnas_jax.models.banks import SupernetSpec
from crnas_jax.models.build import Detector
from crnas_jax.models.layers import preprocess
from crnas_jax.ops import convolution
from crnas_jax.search.bn_calibration import calibrate
from crnas_jax.search.evaluator import SubnetEvaluator
from crnas_jax.training.mesh import make_mesh, put_batch

SPEC = SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1, 2), (1, 2), (1, 3), (1, 2)), (1, 2))
CANVASES = [(64, 96), (96, 64)]


@pytest.fixture(scope="module")
def model():
    detector = Detector(SPEC, tiny_options())
    variables = jax.device_get(jax.jit(detector.init)(jax.random.key(0)))
    return detector, randomised(variables), SubnetEvaluator(detector, make_mesh(2, 2), chunk=8)


def _batch(canvas, seed=0):
    batch = {**tiny_batch(2, *canvas, seed=seed), "image_id": np.arange(2)}
    return put_batch(make_mesh(2, 2), batch)


def _choices(number, seed=0):
    rng = np.random.default_rng(seed)
    choices = []
    for _ in range(number):
        depths = [int(rng.choice(grid)) for grid in SPEC.grids]
        choices.append(SPEC.choice(depths, rng.integers(2, size=sum(depths))))
    return choices


def test_lists_of_any_length_share_one_compilation_and_equal_one_by_one(model):
    detector, variables, evaluator = model
    for canvas in CANVASES:
        evaluator.detect(variables, _batch(canvas), _choices(8, seed=99))
    compiled = evaluator.compilations

    def alone(variables, batch, choice):
        path = {n: banks.gather(t, detector.rows(t, choice)) for n, t in variables.items()}
        return detector.apply(path, batch, choice, "batch")

    alone = jax.jit(alone)
    for canvas, number in [(c, n) for c in CANVASES for n in (1, 7, 50)]:
        choices, batch = _choices(number, seed=number), _batch(canvas, seed=number)
        found = evaluator.detect(variables, batch, choices)
        assert found["boxes"].shape == (number, 2, 10, 4)
        assert found["valid"].any()
        for index in {0, number // 2, number - 1}:
            one = alone(variables, batch, choices[index])
            np.testing.assert_array_equal(found["valid"][index], one["valid"])
            np.testing.assert_array_equal(found["labels"][index], one["labels"])
            np.testing.assert_allclose(found["scores"][index], one["scores"], atol=1e-5)
            np.testing.assert_allclose(found["boxes"][index], one["boxes"], atol=1e-3)
    assert evaluator.compilations == compiled


def test_calibrated_statistics_are_those_of_all_images_pooled(model):
    """At the stem the input does not depend on other layers: the pooled moments are known."""
    detector, variables, evaluator = model
    batches = [_batch((64, 96), seed) for seed in range(3)]
    batches[1] = {**batches[1], "weight": np.array([1, 0], np.float32)}
    choices = _choices(2, seed=5)
    stats = calibrate(evaluator, variables, batches, choices)
    outputs = []
    for batch in batches:
        used = np.asarray(batch["weight"]) > 0
        image = np.asarray(batch["image"])[used]
        outputs.append(_stem_convolution(variables, image, np.asarray(batch["image_size"])[used]))
    outputs = np.concatenate(outputs)
    for subnet in stats:
        found = subnet["backbone"]["stem"]["bn1"]
        np.testing.assert_allclose(found["mean"], outputs.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found["var"], outputs.var((0, 1, 2)), rtol=1e-3, atol=1e-4)
    detections = evaluator.detect(variables, batches[0], choices, stats)

    @jax.jit
    def alone(variables, own, choice):
        path = {n: banks.gather(t, detector.rows(t, choice)) for n, t in variables.items()}
        return detector.apply({**path, "batch_stats": own}, batches[0], choice)

    for index, (choice, own) in enumerate(zip(choices, stats, strict=True)):
        one = jax.tree.map(np.float32, jax.device_get(alone(variables, own, choice)))
        same = jax.tree.map(lambda leaf, i=index: np.float32(leaf[i]), detections)
        assert greatest_difference(same, one) < 1e-3


def _stem_convolution(variables, image, size):
    kernel = variables["params"]["backbone"]["stem"]["conv1"]["kernel"]
    return np.asarray(
        convolution._compiler_conv(
            preprocess(image, size, np.float32), kernel, convolution.ConvSpec(2)
        )
    )
