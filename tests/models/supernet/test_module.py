"""A supernet's path is the stand-alone network, and what is not sampled does not move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import largest_difference, randomised, tiny_batch, tiny_options

from crnas_jax.errors import UserError
from crnas_jax.models.build import Detector
from crnas_jax.models.layers import BN_TRAIN
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer, sample_choice

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
    """Leaves over the greatest entry of the reference's, where that is above 1."""
    return jax.tree.map(lambda x, r: np.asarray(x) / max(1.0, abs(r).max()), tree, reference)


def _check_path_equals_network(spec, depths, operations, step, tolerance=1e-5):
    """`step(detector)` maps (variables, choice) to (outputs, gradient, new statistics)."""
    detector = Detector(spec, tiny_options())
    choice = spec.choice(depths, operations)
    alone = Detector(spec.arch(depths, operations), tiny_options())
    variables = randomised(jax.device_get(jax.jit(detector.init)(jax.random.key(0))))

    @jax.jit
    def run_path(variables, choice):
        outputs, gradient, stats = step(detector)(_gather(detector, variables, choice), choice)
        back = {
            name: banks.scatter(variables[name], detector.rows(variables[name], choice), tree)
            for name, tree in (("params", gradient), ("batch_stats", stats))
        }
        return outputs, detector.extract(back, choice, depths)

    outputs, back = run_path(variables, choice)
    own = jax.jit(lambda v, c: detector.extract(v, c, depths))(variables, choice)
    own_outputs, own_gradient, own_stats = jax.jit(lambda v: step(alone)(v, None))(own)
    assert (
        largest_difference(_scaled(outputs, own_outputs), _scaled(own_outputs, own_outputs))
        < tolerance
    )
    assert largest_difference(back["batch_stats"], own_stats) < tolerance
    # Gradients of single weights reach 100 here: relative to the greatest of their leaf.
    scaled = _scaled(back["params"], own_gradient)
    assert largest_difference(scaled, _scaled(own_gradient, own_gradient)) < tolerance


def _backbone_step(detector):
    """Features c2..c5, the gradient of a loss on all of them, and the statistics after them."""
    batch = tiny_batch()

    def step(variables, choice):
        def loss(params):
            run = {"params": params, "batch_stats": variables["batch_stats"]}
            features, updated = detector.module.apply(
                run,
                method=lambda module: module.backbone(
                    jnp.asarray(batch["image"]) / 255, choice, BN_TRAIN, batch["weight"]
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
    """The four losses of the whole detector, their gradient, and the statistics after them."""
    batch, keys = tiny_batch(), jax.random.split(jax.random.key(1), 2)

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
    """Features, gradients and updated statistics; stages and operations searched at once."""
    if family == "mobilenet_v2":
        spec = SupernetSpec(family, MOBILE_WIDTHS, MOBILE_GRIDS, (1, 2, 3), *rules)
        _check_path_equals_network(spec, MOBILE_DEPTHS, MOBILE_OPERATIONS, _backbone_step)
        return
    widths = (16, 16, 32, 32) if family == "resnext_32x4d" else WIDTHS
    spec = SupernetSpec(family, widths, GRIDS, (1, 2, 3), *rules)
    _check_path_equals_network(spec, DEPTHS, OPERATIONS, _backbone_step)


@pytest.mark.parametrize("sharing", banks.STAGE_SHARING)
def test_stage_supernet_equals_stand_alone_network(sharing):
    """One dilation only; the shallowest path; blocks recomputed in the backward pass."""
    spec = SupernetSpec("resnet_basic", WIDTHS, GRIDS, stage_sharing=sharing)
    _check_path_equals_network(spec, (1, 1, 1, 2), (0,) * 5, _backbone_step)


def test_whole_detector_of_a_path_equals_the_stand_alone_detector():
    spec = SupernetSpec("resnet_basic", WIDTHS, GRIDS, (1, 2, 3))
    _check_path_equals_network(spec, DEPTHS, OPERATIONS, _detector_step)


@pytest.mark.parametrize(("rules", "devices"), [(RULES[0], 8), (RULES[3], 1)])
def test_what_is_not_sampled_stays_bit_identical(rules, devices):
    """Parameters, momentum and statistics, over a step with weight decay after two other steps."""
    spec = SupernetSpec("resnet_basic", WIDTHS, GRIDS, (1, 2, 3), *rules)
    detector = Detector(spec, tiny_options())
    mesh = make_mesh(8, devices)
    trainer = Trainer(
        detector, make_optimizer(OptimizerOptions(weight_decay=0.1), 8, 10), mesh, seed=0
    )
    batch = {**tiny_batch(8), "image_id": np.arange(8)}
    state = trainer.init()
    for step in range(2):
        state, _ = trainer.step(state, [put_batch(mesh, batch)], sample_choice(detector, 0, step))
    before = jax.device_get(state)
    choice = spec.choice(DEPTHS, OPERATIONS)
    where = jax.device_get(jax.jit(trainer._rows)(choice))
    programs = [trainer._gather, trainer._update, trainer._scatter]
    compiled = [program._cache_size() for program in programs]
    state, _ = trainer.step(state, [put_batch(mesh, batch)], choice)
    assert [program._cache_size() for program in programs] == compiled, "another path recompiled"
    moved = kept = 0
    for index, old, new in zip(*map(jax.tree.leaves, (where, before, state)), strict=True):
        if index.ndim == 0:
            continue
        sampled = np.zeros(len(old), bool)
        sampled[index[index < len(old)]] = True
        np.testing.assert_array_equal(np.asarray(new)[~sampled], old[~sampled])
        moved += int((np.asarray(new)[sampled] != old[sampled]).any())
        kept += int((~sampled).any())
    assert moved > 50
    assert kept > 10


def test_choices_off_the_supernet_are_refused():
    """`lax.switch` would clamp them in silence."""
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


def test_paths_are_uniform_and_depend_on_seed_and_step_alone():
    detector = Detector(SupernetSpec("resnet_basic", WIDTHS, GRIDS, (1, 2)), tiny_options())
    paths = [sample_choice(detector, 7, step) for step in range(600)]
    again = sample_choice(detector, 7, 5)
    assert all((paths[5][name] == again[name]).all() for name in again)
    counts = np.bincount([path["branch"][0] for path in paths], minlength=2)
    assert (abs(counts - 300) < 60).all()
