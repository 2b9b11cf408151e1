"""Recalibrated statistics are those of all images together, in float64, and of the same subnet."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import fresh_variables, randomised, tiny_options
from rounding import EPSILON, FACTOR, nudged

from crnas_jax.arch.staged import Arch
from crnas_jax.data import loader
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.evaluation.bn_statistics import merge, recalibrate
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.build import Detector
from crnas_jax.models.layers import BN_BATCH, Conv
from crnas_jax.models.rcnn import NeckOptions
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.runtime import interruption
from crnas_jax.search.supernet.bn_calibration import calibrate
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.search.supernet.scorer import ScoreOptions

SIZE, BATCH_SIZE, SEED = ImageSize(64, 64), 4, 3
WIDTHS = (4, 4, 8, 8)
RESNET = Detector(Arch("resnet_basic", (1, 2, 1, 1), widths=WIDTHS), tiny_options())
NAS_FPN = Detector(
    Arch("mobilenet_v2", (1, 1, 1, 1, 1), widths=(4, 4, 8, 8, 8, 16, 16)),
    dataclasses.replace(tiny_options(), neck=NeckOptions("nas_fpn", stacks=1, lowest_level=2)),
)


class MixedSource(SyntheticSource):
    """Eight square images, and three portraits that make one padded mini-batch of four."""

    def __init__(self):
        super().__init__(11, 64)
        self.sizes[8:, 1] = 48

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return {**record, "image": record["image"][:, : self.sizes[index, 1]]}


SOURCE = MixedSource()


def _variables(model):
    return randomised(fresh_variables(model), scale=0.03)


def _recalibrate(model, variables, num_images, num_devices=1):
    new = recalibrate(model, variables, SOURCE, SIZE, BATCH_SIZE, num_images, SEED, num_devices)
    assert _bits(new["params"]) == _bits(variables["params"])
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(new))
    return new


def _bits(tree):
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten_dict(tree).items()}


def _batches(num_images):
    """Return the mini-batches on which the scorer recalibrates subnets."""
    options = ScoreOptions(BATCH_SIZE, SIZE, calibration_images=num_images, seed=SEED)
    plan, num_batches = options.calibration_plan(SOURCE)
    return list(loader.batches(SOURCE, plan, DetectionRows(SIZE), stop=num_batches))


@functools.cache
def _convolutions(model):
    """Return a program that gives the outputs of all convolutions."""

    @jax.jit
    def run(variables, batch):
        _, captured = model.module.apply(
            variables,
            batch,
            None,
            BN_BATCH,
            method="features",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Conv),
        )
        return captured["intermediates"]

    return run


def _reference(model, variables, batches):
    """Return the statistics over the convolutions' outputs for all real images, float64."""
    parts = [
        {
            (*path[:-2], path[-2].replace("conv", "bn")): np.float64(output)[batch["weight"] > 0]
            for path, (output,) in flatten_dict(
                _convolutions(model)(variables, put_batch(make_mesh(BATCH_SIZE, 1), batch))
            ).items()
        }
        for batch in batches
    ]
    statistics = {}
    for path in parts[0]:
        outputs = np.concatenate([part[path] for part in parts])
        statistics[path] = {"mean": outputs.mean((0, 1, 2)), "var": outputs.var((0, 1, 2))}
    return statistics


def _layers(batch_stats):
    """Return {"mean", "var"} by the path of each layer."""
    layers = {}
    for (*path, name), leaf in flatten_dict(batch_stats).items():
        layers.setdefault(tuple(path), {})[name] = leaf
    return layers


def _errors(layers, expected):
    """Return the largest errors of means, in deviations, and relative ones of variances."""
    mean = max(
        (abs(layer["mean"] - expected[path]["mean"]) / np.sqrt(expected[path]["var"])).max()
        for path, layer in layers.items()
    )
    var = max(abs(layer["var"] / expected[path]["var"] - 1).max() for path, layer in layers.items())
    return np.array([mean, var])


def _assert_rounding_alone(layers, model, variables, batches, expected):
    """Allow `FACTOR` times what weights that are an epsilon off change."""
    others = [_reference(model, nudged(variables, seed), batches) for seed in range(3)]
    rounding = [_errors({path: other[path] for path in layers}, expected) for other in others]
    bound = FACTOR * np.max(rounding, axis=0) + EPSILON
    errors = _errors(layers, expected)
    assert (errors <= bound).all(), (errors, bound)
    assert bound.max() < 0.01, "the bound tells nothing"


@pytest.mark.parametrize(
    ("model", "num_images", "num_read", "num_devices"),
    [(RESNET, 1, 4, 1), (RESNET, 12, 11, 1), (RESNET, 12, 11, 4), (NAS_FPN, 12, 11, 2)],
    ids=["one_batch", "padded_batch", "four_devices", "nas_fpn"],
)
def test_statistics_are_those_of_all_real_images(model, num_images, num_read, num_devices):
    """On any number of devices; the images are the scorer's, and the neck's layers count too."""
    variables, batches = _variables(model), _batches(num_images)
    assert sum(int(batch["weight"].sum()) for batch in batches) == num_read
    expected = _reference(model, variables, batches)
    new = _recalibrate(model, variables, num_images, num_devices)
    layers = _layers(new["batch_stats"])
    assert any(path[0] != "backbone" for path in layers) == (model is NAS_FPN)
    _assert_rounding_alone(layers, model, variables, batches, expected)


def _with_odd_values(variables):
    """Give the first two channels of all layers statistics that arithmetic does not keep."""

    def odd(path, leaf):
        leaf = leaf.copy()
        leaf[:2] = (-0.0, 1e-42) if path[-1].key == "mean" else (0.0, 1e-42)
        return leaf

    stats = jax.tree_util.tree_map_with_path(odd, variables["batch_stats"])
    return {**variables, "batch_stats": stats}


@pytest.mark.parametrize(
    ("freeze", "frozen_parts"),
    [
        (FreezeOptions(freeze_norm=True), {"stem", "stage1", "stage2", "stage3", "stage4"}),
        (FreezeOptions(freeze_at=2), {"stem", "stage1"}),
    ],
    ids=["freeze_norm", "freeze_at"],
)
def test_frozen_layers_keep_their_statistics_bit_for_bit(freeze, frozen_parts):
    model = dataclasses.replace(RESNET, freeze=freeze)
    variables = _with_odd_values(_variables(model))
    new = _recalibrate(model, variables, 12)
    parts = new["batch_stats"]["backbone"]
    for part, stats in variables["batch_stats"]["backbone"].items():
        old, recalibrated = _bits(stats), _bits(parts[part])
        for path in old:
            assert (old[path] == recalibrated[path]) == (part in frozen_parts), (part, path)
    moved = {
        path: layer
        for path, layer in _layers(new["batch_stats"]).items()
        if path[1] not in frozen_parts
    }
    if moved:
        batches = _batches(12)
        expected = _reference(model, variables, batches)
        _assert_rounding_alone(moved, model, variables, batches, expected)


def test_a_layer_that_moves_only_in_its_variance_is_merged():
    """Equal means do not make a layer a frozen one, nor do equal variances."""
    mean, var = np.float32([1, 1, 2]), np.float32([4, 4, 4])
    new = {"mean": np.float32([1, 3, 2]), "var": np.float32([8, 4, 4])}
    merged = merge({"bn": {"mean": mean, "var": var}}, 3, {"bn": new}, 1)["bn"]
    np.testing.assert_allclose(merged["mean"], [1, 1.5, 2], rtol=2 * EPSILON)
    np.testing.assert_allclose(merged["var"], [5, 4.75, 4], rtol=2 * EPSILON)


def test_a_network_cut_out_of_a_supernet_has_its_subnets_statistics():
    spec = SupernetSpec("resnet_basic", WIDTHS, ((1, 2), (1, 2), (1,), (1,)), (1, 2))
    supernet, depths, operations = Detector(spec, tiny_options()), (2, 1, 1, 1), (1, 0, 0, 1, 0)
    variables, choice = _variables(supernet), spec.choice(depths, operations)
    mesh = make_mesh(BATCH_SIZE, 1)
    batches = [put_batch(mesh, batch) for batch in _batches(12)]
    (stats,) = calibrate(SubnetEvaluator(supernet, mesh), variables, batches, [choice])
    where = supernet.rows(variables["batch_stats"], choice)
    calibrated = banks.scatter(jax.device_put(variables["batch_stats"]), where, stats)
    subnet = supernet.extract({**variables, "batch_stats": calibrated}, choice, depths)
    model = Detector(spec.arch(depths, operations), supernet.options)
    network = supernet.extract(variables, choice, depths)
    new = _recalibrate(model, network, 12)
    _assert_rounding_alone(
        _layers(new["batch_stats"]),
        model,
        network,
        _batches(12),
        _layers(subnet["batch_stats"]),
    )


def test_a_stop_is_heeded_after_a_mini_batch(monkeypatch):
    requests = iter([False, True])
    monkeypatch.setattr(interruption, "requested", lambda: next(requests))
    with pytest.raises(interruption.Stopped, match="start again"):
        _recalibrate(RESNET, _variables(RESNET), 12)
    assert not list(requests)
