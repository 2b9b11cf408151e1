"""The training step: precision, memory savers and devices do not change what it computes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import fixed_proposals, largest_difference, tiny_batch, tiny_options

from crnas_jax.arch.staged import Arch
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.heads.box_head import CASCADE_STAGES
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.rcnn import NeckOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch, put_parts
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

TINY = Arch("resnet_basic", (1, 2, 1, 1), widths=(8, 8, 16, 16))
SUPERNET = SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1, 2), (1,), (1, 3), (1,)), (1, 2))
MOBILE = SupernetSpec("mobilenet_v2", (4, 4, 8, 8, 8, 12, 16), ((1, 2), (1,), (1,), (1,), (1,)))
# Cheaper to compile, where the detector's losses do not matter.
CLASSIFIER = Classifier(TINY, ClassifierOptions(3))


@functools.cache  # what one test traced serves the others
def _trainer(model, num_devices=1, batch_size=8, seed=0, fsdp=1, **options):
    optimizer = make_optimizer(OptimizerOptions(**options), batch_size, 10)
    return Trainer(model, optimizer, make_mesh(batch_size, num_devices, fsdp=fsdp), seed)


def _steps(model, num_steps, num_devices=1, num_parts=1, batch=None, **options):
    """Return the state and the losses after some steps on one batch."""
    batch = fixed_proposals() if batch is None else batch
    trainer = _trainer(model, num_devices, len(batch["image"]), **options)
    state, losses = trainer.init(), []
    for step in range(num_steps):
        state, metrics = trainer.step(
            state, put_parts(trainer.mesh, batch, num_parts), model.sample(0, step)
        )
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


@functools.cache
def _plain(spec):
    """Return the state and the losses after three plain steps, which several tests compare with."""
    return _steps(Detector(spec, tiny_options()), 3)


@pytest.mark.parametrize("spec", [TINY, SUPERNET], ids=["network", "supernet"])
def test_eight_devices_take_the_steps_of_one(spec):
    """Three steps from one state, proposals and samples fixed, to 1e-4 of the largest entry."""
    model = Detector(spec, tiny_options())
    single, losses = _plain(spec)
    split, split_losses = _steps(model, 3, num_devices=8)
    np.testing.assert_allclose(split_losses, losses, rtol=1e-4)
    for name in ("params", "batch_stats", "opt_state"):
        scaled = [
            jax.tree.map(lambda x, r: x / max(abs(r).max(), 1.0), state[name], single[name])
            for state in (single, split)
        ]
        assert largest_difference(*scaled) < 1e-4


def test_paths_are_a_function_of_seed_and_step():
    model = Detector(dataclasses.replace(SUPERNET, grids=((1, 2),) * 4), tiny_options())
    paths = [model.sample(3, step) for step in range(20)]
    assert largest_difference(paths[7], model.sample(3, 7)) == 0
    assert len({tuple(path["branch"]) for path in paths}) > 5
    paths_of_another_seed = [model.sample(4, step) for step in range(20)]
    assert largest_difference(paths, paths_of_another_seed) > 0


@pytest.mark.parametrize("seed", [2**31 - 1, 2**40 + 3])
def test_the_first_state_is_that_of_the_seed_as_a_constant(seed):
    state = _trainer(CLASSIFIER, seed=seed).init()
    expected = jax.jit(lambda: CLASSIFIER.init(jax.random.key(seed)))()
    for name in ("params", "batch_stats"):
        assert largest_difference(state[name], expected[name]) == 0


def test_seeds_share_programs_and_draw_their_own_samples(caplog):
    """From one state a step has other losses, because it samples other anchors and RoIs."""
    trainer, other = (_trainer(Detector(TINY, tiny_options()), seed=seed) for seed in (1, 2))
    parts = put_parts(trainer.mesh, fixed_proposals(), 1)
    losses = [float(trainer.step(trainer.init(), parts)[1]["loss"])]
    with jax.log_compiles():
        other_start = other.init()
        losses += [float(same.step(trainer.init(), parts)[1]["loss"]) for same in (trainer, other)]
    assert "Compiling" not in caplog.text
    assert losses[0] == losses[1] != losses[2]
    assert largest_difference(other_start["params"], trainer.init()["params"]) > 0


@pytest.mark.parametrize("spec", [TINY, SUPERNET], ids=["network", "supernet"])
def test_remat_changes_neither_losses_nor_parameters(spec):
    plain, losses = _plain(spec)
    remat, remat_losses = _steps(Detector(spec, tiny_options(), remat=True), 3)
    np.testing.assert_allclose(remat_losses, losses, rtol=1e-5)
    assert largest_difference(plain["params"], remat["params"]) < 1e-4


@pytest.mark.parametrize("spec", [TINY, SUPERNET], ids=["network", "supernet"])
def test_bfloat16_follows_float32(spec):
    """Losses to 3 %; parameters, statistics and momentum stay float32."""
    _, losses = _plain(spec)
    state, low = _steps(Detector(spec, tiny_options(), precision="bfloat16"), 3)
    np.testing.assert_allclose(low, losses, rtol=0.03)
    assert low != losses
    for name in ("params", "batch_stats", "opt_state"):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(state[name]) if leaf.ndim}
        assert dtypes == {jnp.dtype("float32")}


def test_accumulation_over_equal_parts_is_the_plain_step():
    """A batch that repeats half of itself has the same statistics as each of its halves."""
    half = {name: rows[:4] for name, rows in fixed_proposals().items()}
    batch = {name: np.repeat(rows, 2, 0) for name, rows in half.items()}
    model = Detector(SUPERNET, tiny_options())
    plain, losses = _steps(model, 1, batch=batch)
    parts, part_losses = _steps(model, 1, num_parts=2, batch=batch)
    np.testing.assert_allclose(part_losses, losses, rtol=1e-5)
    for name in ("params", "opt_state"):
        assert largest_difference(plain[name], parts[name]) < 1e-5


def test_accumulation_weighs_parts_by_their_images():
    """A part of padding alone changes neither the step nor the statistics."""
    batch = fixed_proposals(4)
    model = CLASSIFIER
    alone, losses = _steps(model, 1, batch={name: rows[::2] for name, rows in batch.items()})
    batch["weight"][1::2] = 0
    padded, padded_losses = _steps(
        model, 1, num_parts=2, batch=batch, lr_per_image=OptimizerOptions().lr_per_image / 2
    )
    np.testing.assert_allclose(padded_losses, losses, rtol=1e-5)
    assert largest_difference(alone["params"], padded["params"]) < 1e-6
    assert largest_difference(alone["batch_stats"], padded["batch_stats"]) < 1e-5


def test_accumulation_weighs_unequal_parts():
    """Parts of three images and one: but for statistics, the gradient is that of all four."""
    batch = fixed_proposals(8)
    batch["weight"][:] = [1, 1, 1, 0, 1, 0, 0, 0]  # parts of even and odd rows: 3 and 1
    model = CLASSIFIER
    _, losses = _steps(model, 1, num_parts=2, batch=batch)
    alone = []
    for part in range(2):
        half = {name: rows[part::2] for name, rows in batch.items()}
        rate = OptimizerOptions().lr_per_image * 2  # because the batch has half the size
        alone.append(_steps(model, 1, batch=half, lr_per_image=rate, weight_decay=0.0))
    assert losses[0] == pytest.approx((3 * alone[0][1][0] + alone[1][1][0]) / 4, rel=1e-5)
    start = jax.device_get(_trainer(model).init()["params"])
    mean = jax.tree.map(
        lambda s, a, b: s + (3 * (a - s) + (b - s)) / 4,
        start,
        alone[0][0]["params"],
        alone[1][0]["params"],
    )
    plain, _ = _steps(model, 1, num_parts=2, batch=batch, weight_decay=0.0)
    assert largest_difference(plain["params"], mean) < 1e-6


def test_clipping_scales_the_gradient_of_the_path():
    model = Classifier(SUPERNET, ClassifierOptions(3))
    trainer = _trainer(model, weight_decay=0.0, clip_norm=0.5)
    before = trainer.init()
    start = jax.device_get(before["params"])
    parts = put_parts(trainer.mesh, fixed_proposals(), 1)
    after, metrics = trainer.step(before, parts, model.sample(0, 0))
    assert metrics["gradient_norm"] > 0.5
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, jax.device_get(after["params"]), start)
    rate = OptimizerOptions().lr_per_image * 8 * 1e-3  # the first step of the warm-up
    assert float(optax.tree.norm(moved)) == pytest.approx(0.5 * rate, rel=0.02)


def _cascade_options():
    """Return options with masks, three stages and NAS-FPN at once."""
    options = tiny_options()
    stages = {"stages": CASCADE_STAGES, "class_agnostic": True}
    return dataclasses.replace(
        options,
        box=dataclasses.replace(options.box, **stages),
        mask=MaskHeadOptions(8, 1),
        neck=NeckOptions("nas_fpn", 1, 3),
    )


@pytest.mark.parametrize(
    ("spec", "options", "fsdp"),
    [(TINY, tiny_options(), 1), (SUPERNET, tiny_options(), 4), (MOBILE, _cascade_options(), 1)],
    ids=["network", "split supernet", "cascade mask"],
)
def test_steps_export_for_accelerators(spec, options, fsdp):
    """Training, and detection on 8 devices, use nothing that only the CPU has."""
    model = Detector(spec, options, precision="bfloat16")
    trainer = _trainer(model, num_devices=8, fsdp=fsdp)
    batch = {**tiny_batch(8), "image_id": np.arange(8)}
    batch["masks"] = np.zeros((8, 2, 8, 8), np.uint8)
    part = put_batch(trainer.mesh, batch)
    choice, platforms = model.sample(0, 0), ("tpu", "cuda")
    for program, arguments in trainer.programs(part, choice):
        exported = jax.export.export(program, platforms=platforms)(*arguments)
        assert exported.platforms == platforms
        assert exported.nr_devices == 8
    detect = jax.jit(lambda variables, batch: model.apply(variables, batch, choice))
    path = trainer.path_shapes(choice)
    variables = {name: path[name] for name in ("params", "batch_stats")}
    jax.export.export(detect, platforms=platforms)(variables, part)
