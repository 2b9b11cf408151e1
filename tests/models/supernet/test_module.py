"""A supernet's path equals the stand-alone network, and blocks not sampled do not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import fresh_variables, largest_difference, randomised, tiny_batch, tiny_options
from rounding import EPSILON, FACTOR, nudged

from crnas_jax.errors import UserError
from crnas_jax.models.build import Detector
from crnas_jax.models.layers import BN_TRAIN, Normalization
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

WIDTHS = (8, 8, 16, 16)
GRIDS = ((1, 2), (1,), (1, 3), (1, 2))
DEPTHS, OPERATIONS = (2, 1, 3, 1), (0, 1, 2, 0, 2, 1, 2)
# Of MobileNetV2 the first and the last stage have one block, which is searched too.
MOBILE_WIDTHS = (4, 4, 8, 8, 8, 12, 16)
MOBILE_GRIDS = ((1, 2), (1,), (1, 3), (1,), (1, 2))
MOBILE_DEPTHS, MOBILE_OPERATIONS = (2, 1, 3, 1, 1), (2, 0, 1, 2, 0, 2, 1, 0, 1, 2)
RULES = [("branch", "own"), ("prefix", "own"), ("branch", "shared"), ("prefix", "shared")]


def _gather(detector, variables, choice):
    return {
        name: banks.gather(tree, detector.rows(tree, choice)) for name, tree in variables.items()
    }


def _scaled(tree, reference):
    """Return leaves over the largest entry of the reference's, where that is above 1."""
    return jax.tree.map(lambda x, r: np.asarray(x) / max(1.0, abs(r).max()), tree, reference)


@functools.cache  # networks that several tests compare with are compiled once
def _network_step(arch, step):
    network = Detector(arch, tiny_options())
    return jax.jit(lambda variables: step(network)(variables, None))


def _check_path_equals_network(spec, depths, operations, step):
    """Compare a path with its network, each leaf relative to its largest entry.

    `step(detector)` maps (variables, choice) to (outputs, gradient, new statistics). These may be
    off by `FACTOR` times what weights that are an epsilon off change: gradients of such small
    networks make up to thousands of epsilons of one.
    """
    detector = Detector(spec, tiny_options())
    choice = spec.choice(depths, operations)
    variables = randomised(fresh_variables(detector))

    @jax.jit
    def run_path(variables, choice):
        outputs, gradient, stats = step(detector)(_gather(detector, variables, choice), choice)
        back = {
            name: banks.scatter(variables[name], detector.rows(variables[name], choice), tree)
            for name, tree in (("params", gradient), ("batch_stats", stats))
        }
        return outputs, detector.extract(back, choice, depths)

    outputs, back = run_path(variables, choice)
    network = jax.jit(lambda v, c: detector.extract(v, c, depths))(variables, choice)
    run_network = _network_step(spec.arch(depths, operations), step)
    expected = run_network(network)
    others = [run_network(nudged(network, seed)) for seed in range(3)]
    path = (outputs, back["params"], back["batch_stats"])
    for tree, expected_tree, *other_trees in zip(path, expected, *others, strict=True):
        scaled = _scaled(expected_tree, expected_tree)
        error, *rounding = (
            largest_difference(_scaled(other, expected_tree), scaled)
            for other in (tree, *other_trees)
        )
        assert error <= FACTOR * max(rounding) + EPSILON


def _backbone_step(detector):
    """Return a step of (features c2..c5, gradient of a loss on them all, new statistics)."""
    batch = jax.tree.map(jnp.asarray, tiny_batch())

    def step(variables, choice):
        def loss(params):
            run = {"params": params, "batch_stats": variables["batch_stats"]}
            features, updated = detector.module.apply(
                run,
                method=lambda module: module.backbone(
                    batch["image"] / 255,
                    choice,
                    Normalization(BN_TRAIN, batch["weight"]),
                ),
                mutable=["batch_stats"],
            )
            return sum(jnp.sin(feature).mean() for feature in features), (features, updated)

        (_, (features, updated)), gradient = jax.value_and_grad(loss, has_aux=True)(
            variables["params"]
        )
        return features, gradient, updated["batch_stats"]

    return step


def _detector_step(detector):
    """Return a step of (the detector's four losses, their gradient, new statistics)."""
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    keys = jax.random.split(jax.random.key(1), 2)

    def step(variables, choice):
        def loss(params):
            run = {"params": params, "batch_stats": variables["batch_stats"]}
            losses, stats = detector.losses(run, batch, choice, keys)
            return sum(losses.values()), (losses, stats)

        (_, (losses, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return losses, gradient, stats

    return step


@pytest.mark.parametrize(
    ("family", "rules"),
    [
        *(("resnet_basic", rules) for rules in RULES),
        ("resnet_bottleneck", RULES[0]),
        ("resnext_32x4d", RULES[3]),
        ("mobilenet_v2", RULES[0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_path_equals_stand_alone_network(family, rules):
    """Compare features, gradients and updated statistics; stages and operations are searched."""
    if family == "mobilenet_v2":
        spec = SupernetSpec(family, MOBILE_WIDTHS, MOBILE_GRIDS, (1, 2, 3), *rules)
        _check_path_equals_network(spec, MOBILE_DEPTHS, MOBILE_OPERATIONS, _backbone_step)
        return
    widths = (16, 16, 32, 32) if family == "resnext_32x4d" else WIDTHS
    spec = SupernetSpec(family, widths, GRIDS, (1, 2, 3), *rules)
    _check_path_equals_network(spec, DEPTHS, OPERATIONS, _backbone_step)


@pytest.mark.parametrize("sharing", banks.STAGE_SHARING)
def test_stage_supernet_equals_stand_alone_network(sharing):
    """With one dilation, on a path that is shallow in all stages but the last."""
    spec = SupernetSpec("resnet_basic", WIDTHS, GRIDS, stage_sharing=sharing)
    _check_path_equals_network(spec, (1, 1, 1, 2), (0,) * 5, _backbone_step)


def test_whole_detector_of_a_path_equals_the_stand_alone_detector():
    spec = SupernetSpec("resnet_basic", WIDTHS, GRIDS, (1, 2, 3))
    _check_path_equals_network(spec, DEPTHS, OPERATIONS, _detector_step)


def _state_rows(detector, optimizer, state, choice):
    """Return which rows of each leaf of a training state belong to a path."""
    where = {name: detector.rows(state[name], choice) for name in ("params", "batch_stats")}
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, index: index,
        state["opt_state"],
        where["params"],
        transform_non_params=lambda _: banks.WHOLE,
    )
    return {**where, "opt_state": opt_state, "step": banks.WHOLE}


@pytest.mark.parametrize(("rules", "num_devices"), [(RULES[0], 8), (RULES[3], 1)])
def test_blocks_that_are_not_sampled_stay_bit_identical(rules, num_devices, caplog):
    """Parameters, momentum and statistics, over a step with weight decay after two others."""
    spec = SupernetSpec("resnet_basic", WIDTHS, GRIDS, (1, 2, 3), *rules)
    detector = Detector(spec, tiny_options())
    mesh = make_mesh(8, num_devices)
    optimizer = make_optimizer(OptimizerOptions(weight_decay=0.1), 8, 10)
    trainer = Trainer(detector, optimizer, mesh, seed=0)
    batch = put_batch(mesh, {**tiny_batch(8), "image_id": np.arange(8)})
    state = trainer.init()
    with jax.log_compiles():
        for step in range(2):
            state, _ = trainer.step(state, [batch], detector.sample(0, step))
    assert "Compiling" in caplog.text
    before = jax.device_get(state)
    choice = spec.choice(DEPTHS, OPERATIONS)
    caplog.clear()
    with jax.log_compiles():
        state, _ = trainer.step(state, [batch], choice)
    assert "Compiling" not in caplog.text
    where = jax.device_get(jax.jit(lambda c: _state_rows(detector, optimizer, before, c))(choice))
    num_changed = num_unchanged = 0
    for index, old, new in zip(*map(jax.tree.leaves, (where, before, state)), strict=True):
        if index.ndim == 0:
            continue
        sampled = np.zeros(len(old), bool)
        sampled[index[index < len(old)]] = True
        np.testing.assert_array_equal(np.asarray(new)[~sampled], old[~sampled])
        num_changed += int((np.asarray(new)[sampled] != old[sampled]).any())
        num_unchanged += int((~sampled).any())
    assert num_changed > 50
    assert num_unchanged > 10


def test_choices_off_the_supernet_are_refused():
    """`lax.switch` would clamp them without an error."""
    spec = SupernetSpec("resnet_basic", WIDTHS, GRIDS, (1, 2))
    faulty = [
        ((4, 1, 1, 1), None),
        ((1, 1, 1), None),
        ((1, 1, 1, 1), [0, 0, 0, 2]),
        ((1, 1, 1, 1), [0]),
    ]
    for depths, operations in faulty:
        with pytest.raises(UserError):
            spec.choice(depths, operations)


@pytest.mark.parametrize("draws", ["uniform", "balanced"])
def test_paths_are_drawn_equally_and_depend_only_on_seed_and_step(draws):
    spec = SupernetSpec("resnet_basic", WIDTHS, GRIDS, (1, 2), draws=draws)
    detector = Detector(spec, tiny_options())
    paths = [detector.sample(7, step) for step in range(600)]
    drawn_again = detector.sample(7, 5)
    assert all((paths[5][name] == drawn_again[name]).all() for name in drawn_again)
    depths, dilations = ([path[name][0] for path in paths] for name in ("branch", "ops"))
    for values in (depths, dilations):
        counts = np.bincount(values, minlength=2)
        assert (abs(counts - 300) < (1 if draws == "balanced" else 60)).all()


def test_tied_dilations_are_drawn_a_stage_at_a_time():
    spec = SupernetSpec("resnet_basic", WIDTHS, ((3,), (2,), (1,), (2,)), (1, 2, 3), tie="stage")
    paths = np.array([spec.sample(0, step)["ops"] for step in range(60)])
    for start, stop in ((0, 3), (3, 5), (6, 8)):
        assert (paths[:, start:stop] == paths[:, start : start + 1]).all()
    assert len({tuple(path[[0, 3, 5, 6]]) for path in paths}) > 30
