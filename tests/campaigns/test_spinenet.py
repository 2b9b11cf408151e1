"""SpineNet and RetinaNet through everything that there is: `make test-full`."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import tiny_run
from helpers import fixed_proposals, largest_difference, tiny_options, tiny_spinenet
from tiny_run import Hosts

import crnas_jax
from configs import spinenet
from crnas_jax.arch import zoo
from crnas_jax.data.coco import CocoSource, category_entries
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.evaluation.predict import Predictor
from crnas_jax.evaluation.predict_split import predict_split, split_metrics
from crnas_jax.export.package import write_export
from crnas_jax.export.sources import Network
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.box_head import CASCADE_STAGES
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.parallel.mesh import make_mesh, put_parts
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import training as training_settings
from crnas_jax.training.job import TrainingJob, TrainOptions
from crnas_jax.training.loop import train
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

pytestmark = pytest.mark.campaign
programs = pytest.mark.programs

# All of SpineNet-49's blocks, as narrow as they get.
SPINENET_49 = dataclasses.replace(
    zoo.get("spinenet49"), width_scale=1 / 16, alpha=0.5, endpoint_channels=16
)
CR_RESNET_50 = dataclasses.replace(zoo.get("cr_resnet50"), widths=(4, 8, 16, 16))
SIZE = ImageSize(128, 128, 128)
CASCADE = dataclasses.replace(tiny_options().box, stages=CASCADE_STAGES, class_agnostic=True)
RETINA = RetinaNetOptions(3, 16, RetinaHeadOptions("spinenet", 1))
OPTIONS = tiny_options()
DETECTORS = {
    "faster": (SPINENET_49, OPTIONS),
    "mask": (SPINENET_49, dataclasses.replace(OPTIONS, mask=MaskHeadOptions(8, 1))),
    "cascade mask": (
        SPINENET_49,
        dataclasses.replace(OPTIONS, box=CASCADE, mask=MaskHeadOptions(8, 1)),
    ),
    "retinanet": (CR_RESNET_50, RETINA),
}


@programs
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_train_evaluate_and_export(tmp_path, name):
    """Two steps on eight devices, metrics, and an export whose detector detects the same."""
    arch, options = DETECTORS[name]
    detector, source = Detector(arch, options), SyntheticSource(16, 128)
    mask_size = 16 if options.has_masks else 0
    if mask_size:
        source = _with_masks(source)
    rows = DetectionRows(SIZE, 5, flip=True, mask_size=mask_size, scale_jitter=(0.8, 1.2))
    job = TrainingJob(name, detector, source, rows, TrainOptions(1, 8, num_devices=8))
    variables = jax.device_get(train(job, tmp_path / "training"))
    results = predict_split(detector, variables, source, SIZE, 8)
    assert np.isfinite(split_metrics(SyntheticSource(16, 128), results)["AP"])
    categories = category_entries(source.category_ids, source.class_names)
    names = [entry["name"] for entry in categories]
    network = Network(arch, variables, detector, SIZE, source.category_ids, names)
    write_export(tmp_path / "export", network)
    image = source[0]["image"]
    (found,) = crnas_jax.load_detector(tmp_path / "export").predict([image], score=0.0)
    own = Predictor(detector, variables, SIZE, source.category_ids, names)
    (expected,) = own.predict([image], score=0.0)
    assert len(found.boxes) > 0
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    module, loaded = crnas_jax.load_backbone(tmp_path / "export")
    features = jax.jit(module.apply)(loaded, jax.numpy.zeros((1, 128, 128, 3)))
    assert [level.shape[1] for level in features] == [128 // 2**level for level in arch.levels]


def _with_masks(source):
    """Give the objects of a generated set masks: their boxes."""

    class Masked(type(source)):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            polygons = [[[a, b, c, b, c, d, a, d]] for a, b, c, d in record["boxes"].tolist()]
            return {**record, "segmentations": polygons}

    return Masked(len(source), 128)


def _three_steps(num_devices=1, **options):
    """Return the losses and the state after three steps from one state."""
    detector = Detector(tiny_spinenet(), RETINA, **options)
    optimizer = make_optimizer(OptimizerOptions(0.0005), 8, 10)
    trainer = Trainer(detector, optimizer, make_mesh(8, num_devices), 0, ema_decay=0.9)
    parts = put_parts(trainer.mesh, fixed_proposals(), 1)
    state, losses = trainer.init(), []
    for _ in range(3):
        state, metrics = trainer.step(state, parts)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


@programs
def test_precision_remat_and_devices_change_losses_by_less_than_2_per_cent():
    losses, state = _three_steps()
    np.testing.assert_allclose(_three_steps(precision="bfloat16")[0], losses, rtol=0.02)
    for options in ({"remat": True}, {"num_devices": 8}):
        others, other = _three_steps(**options)
        np.testing.assert_allclose(others, losses, rtol=1e-3)
        for name in ("params", "ema"):
            scale = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(state[name]))
            assert largest_difference(state[name], other[name]) < 1e-2 * scale


@programs
@pytest.mark.parametrize("protocol", ["a", "b", "c", "mobile", "imagenet_improved"])
def test_protocols_take_two_steps_on_a_table_of_four_blocks(protocol):
    config = spinenet.get_config(protocol)
    mobile = protocol == "mobile"
    arch = tiny_spinenet("spinenet_mobile" if mobile else "spinenet", num_levels=4)
    assert len(arch.blocks) == 4
    config.precision = "float32"
    # Without weight decay the momentum is the sum of the gradients.
    config.detector_train.weight_decay = config.pretrain.weight_decay = 0.0
    recipe = "detector_train" if "imagenet" not in protocol else "pretrain"
    make = model_settings.detector if recipe == "detector_train" else model_settings.classifier
    model = make(config, arch, 3)
    config[recipe].batch_size = 8
    options = training_settings.train_options(config, recipe)
    trainer = Trainer(model, make_optimizer(options.optimizer, 8, 100), make_mesh(8, 1), 0)
    batch = {**fixed_proposals(), "progress": np.full(8, 0.5, np.float32)}
    state = trainer.init()
    for _ in range(2):
        state, metrics = trainer.step(state, put_parts(trainer.mesh, batch, 1))
        assert np.isfinite(metrics["loss"])
    # Predictors start at 1e-5, so that gradients behind them are small; 1e-12 would be none.
    momentum = optax.tree.get(state["opt_state"], "trace")["head"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(momentum):
        assert path[-1].key != "kernel" or abs(leaf).max() > 1e-9, path


@programs
def test_steps_export_for_accelerators():
    """SpineNet-49 at 640 pixels: the step, and what detects."""
    detector = Detector(
        zoo.get("spinenet49"), RetinaNetOptions(91, head=RetinaHeadOptions("spinenet"))
    )
    batch = {
        "image": jax.ShapeDtypeStruct((2, 640, 640, 3), np.uint8),
        "image_size": jax.ShapeDtypeStruct((2, 2), np.int32),
        "boxes": jax.ShapeDtypeStruct((2, 100, 4), np.float32),
        "labels": jax.ShapeDtypeStruct((2, 100), np.int32),
        "valid": jax.ShapeDtypeStruct((2, 100), bool),
        "crowd": jax.ShapeDtypeStruct((2, 100), bool),
        "weight": jax.ShapeDtypeStruct((2,), np.float32),
        "progress": jax.ShapeDtypeStruct((2,), np.float32),
        "image_key": jax.ShapeDtypeStruct((2,), np.uint32),
    }
    optimizer = make_optimizer(OptimizerOptions(decay_kernels_only=True), 2, 10)
    trainer = Trainer(detector, optimizer, make_mesh(2, 1), 0, ema_decay=0.9)
    platforms = ("tpu", "cuda")
    ((program, arguments),) = trainer.programs(batch)
    assert jax.export.export(program, platforms=platforms)(*arguments).platforms == platforms
    detect = jax.jit(lambda variables, batch: detector.apply(variables, batch, None))
    exported = jax.export.export(detect, platforms=platforms)(detector.shapes, batch)
    assert exported.platforms == platforms


def test_spinenet_learns_eight_photographs(shared_data, tmp_path):
    config = spinenet.get_config("small")
    source = _few(shared_data / "bccd", tmp_path / "train.json")
    arch = zoo.get("spinenet49_quarter")
    detector = model_settings.detector(config, arch, 3)
    size = ImageSize(128, 128, 128)
    head = dataclasses.replace(detector.options.head, anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0))
    detector = dataclasses.replace(
        detector, options=dataclasses.replace(detector.options, head=head)
    )
    optimizer = OptimizerOptions(0.004, schedule="cosine", warmup_steps=40, clip_norm=10.0)
    options = TrainOptions(180.0, 8, optimizer, log_every=20, num_devices=1)
    rows = DetectionRows(size, max_objects=32)
    variables = train(TrainingJob("overfit", detector, source, rows, options), tmp_path)
    results = predict_split(detector, variables, source, size, 8, num_devices=1)
    metrics = split_metrics(source, results)
    print({"AP50": metrics["AP50"]})
    assert metrics["AP50"] >= 0.9


def _few(folder, file):
    """Write the first eight photographs of which no object is below 10 pixels at this size."""
    coco = json.loads((folder / "train.json").read_text())
    small = {entry["image_id"] for entry in coco["annotations"] if min(entry["bbox"][2:]) < 50}
    images = [image for image in coco["images"] if image["id"] not in small][:8]
    ids = {image["id"] for image in images}
    annotations = [entry for entry in coco["annotations"] if entry["image_id"] in ids]
    file.write_text(json.dumps({**coco, "images": images, "annotations": annotations}))
    return CocoSource(folder / "images", file)


def test_both_searches_with_retinanet_and_spinenet_on_two_processes(tmp_path):
    """Supernet and stage search on two, the rest on one; a SpineNet trained on two."""
    workdir = tmp_path / "run"
    flags = [*tiny_run.joint_flags(workdir), "--config.detector.kind=retinanet"]
    flags += ["--config.detector.head=spinenet", "--config.detector.head_convolutions=1"]
    Hosts.run("search_stage", *flags)  # it trains the supernet first
    alone = tiny_run.start("run_crnas", *flags, num_devices=8)
    _, err = alone.communicate()
    assert alone.returncode == 0, err
    result = json.loads((workdir / "result.json").read_text())
    assert {"stage_search", "operation_search", "decision"} <= set(result)

    file = tmp_path / "spinenet.json"
    file.write_text(tiny_spinenet().to_json())
    flags = [*tiny_run.JOINT, f"--config.baseline={file}", "--config.widths=()"]
    flags += ["--config.data.val=", "--config.detector.kind=retinanet"]
    flags += ["--config.detector.head=spinenet", "--config.detector_train.ema_decay=0.9"]
    flags += ["--config.detector.stochastic_depth=0.2", f"--workdir={tmp_path / 'spinenet'}"]
    flags += ["--config.search.max_latency=0", "--network=baseline"]
    Hosts.run("evaluate", *flags)  # it trains the detector first
    test = json.loads((tmp_path / "spinenet" / "baseline" / "test" / "result.json").read_text())
    assert np.isfinite(test["AP"])
