"""The batched evaluator beside its parts, beside static networks, and beside the peers' way.

    python benchmarks/evaluator.py                                            CPU: 256 pixels
    python benchmarks/evaluator.py --height=800 --width=1344 --batch=16       accelerator

ResNet-50's supernets on the paper's grid at half width, in the whole detector, for necks of 256 and
64 channels. Ratios and their targets:

- `parts`: 12 random allocations over (12 x neck and heads + stem + every distinct sequence of first
  stages once), each timed alone as a static program: at most 1.1;
- `loop`: the same over a loop of 12 static networks, and one step of the greedy search (3 partial
  codes with 3 operations each; at the first block 3 codes in all) at the first, middle and last
  block over such a loop, compilation left out: at most 1.05;
- `share of predicted`: the speed-up over that loop, over what the multiply-adds that subnets share
  predict: at least 0.85;
- `peers`: a candidate's seconds the peers' way (build the network, recalibrate it, compile it, read
  256 images, detect, pycocotools) over ours (all candidates in one go, compilation included): at
  least 10. Recalibration takes 500 mini-batches of 8 images with them (DetNAS; what 512 images
  take, times 4000 / 512) and 512 images with us; `same statistics` is with 512 for both. The same
  figures give the ratio for 5,000 images, and with all allocations of the budget the length of a
  whole search. On the CPU with the heads of `configs/quickstart.py`, what a laptop would run.

The persistent compilation cache is not used.
"""

import dataclasses
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import jax
import numpy as np
from absl import app, flags
from peers_way import peer_seconds

from crnas_jax.arch.cost.backbones import backbone_parts
from crnas_jax.arch.cost.detectors import detector_parts
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import ImageSize
from crnas_jax.models.backbones.staged import Stage, StagedBackbone, end_module
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.box_head import BoxHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.layers import BN_BATCH, Normalization, preprocess
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.search.journal import Journal
from crnas_jax.search.strategies.greedy import complete
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer
from crnas_jax.spaces.operations import PAPER_DILATIONS, OperationSpace
from crnas_jax.spaces.stages import PAPER_GRIDS

_HEIGHT = flags.DEFINE_integer("height", 256, "Height of the canvas, pixels.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the canvas, pixels.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images in a mini-batch.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs; medians count.")
_CHUNK = flags.DEFINE_integer("chunk", 0, "Most subnets in a call; 0 for what fits the memory.")
_PRECISION = flags.DEFINE_string("precision", "float32", "float32 or bfloat16.")
_PEERS_SIZE = flags.DEFINE_integer("peers_size", 96, "Side of the images for `peers`, pixels.")
_PEERS = flags.DEFINE_integer("peers", 3, "Candidates that are scored the peers' way.")
_OURS = flags.DEFINE_integer("ours", 153, "Candidates that are scored our way.")
_ONLY = flags.DEFINE_list("only", ["shared", "peers"], "Measurements to make.")

FAMILY, DEPTHS, BUDGET = "resnet_bottleneck", (3, 4, 6, 3), 16
NUM_SUBNETS, BEAM = 12, 3
NECKS = (256, 64)
LAPTOP = DetectorOptions(
    80,
    64,
    RPNOptions(pre_nms=(300, 200), post_nms=(200, 100)),
    BoxHeadOptions(head_channels=256, nms_candidates=300),
)


def main(_):
    result = {"canvas": [_HEIGHT.value, _WIDTH.value], "batch": _BATCH.value, "ratios": {}}
    if "shared" in _ONLY.value:
        for name, measurement in shared().items():
            result["ratios"][name] = measurement.pop("ratios")
            result[name] = measurement
    if "peers" in _ONLY.value:
        result["peers"] = peers()
        result["ratios"] |= result["peers"].pop("ratios")
    suffix = "" if len(_ONLY.value) > 1 else f"_{_ONLY.value[0]}"
    common.report(f"evaluator{suffix}", result)


def shared() -> dict[str, dict]:
    """Measure the evaluator beside its parts and beside static networks."""
    batch = common.random_batch(_BATCH.value, _HEIGHT.value, _WIDTH.value)
    mesh, (batch,) = common.device_parts(batch)
    rng = np.random.default_rng(0)
    spec = SupernetSpec(FAMILY, common.HALF_WIDTHS, PAPER_GRIDS)
    space = spec.stages.within(BUDGET)
    allocations = [space.sample(rng) for _ in range(NUM_SUBNETS)]
    lists = {"allocations": (spec, [(depths, None) for depths in allocations])}

    spec = SupernetSpec(FAMILY, common.HALF_WIDTHS, tuple((d,) for d in DEPTHS), PAPER_DILATIONS)
    space = OperationSpace(DEPTHS)
    blocks = {"first": 0, "middle": space.num_blocks // 2, "last": space.num_blocks - 1}
    for name, block in blocks.items():
        beam = sorted({tuple(rng.integers(3, size=block).tolist()) for _ in range(BEAM)})
        partial = [(*code, operation) for code in beam for operation in range(3)]
        full = [(DEPTHS, complete(space, code, 0, 0)) for code in partial]
        lists[f"greedy, {name} block"] = (spec, full)

    measurements = {}
    for name, (spec, subnets) in lists.items():
        measurements |= _beside_static(name, spec, subnets, mesh, batch)
    return measurements


def _beside_static(name, spec, subnets, mesh, batch):
    """Measure a list of subnets, pairs (depths, operations), with both necks.

    The static backbones do not depend on the neck and are the same programs for both.
    """
    weight, canvas, measurements = batch["weight"], batch["image"].shape[1:3], {}
    detectors = {
        channels: Detector(spec, _options(channels, min(canvas)), precision=_PRECISION.value)
        for channels in NECKS
    }
    variables = {
        channels: jax.jit(detector.init)(jax.random.key(0))
        for channels, detector in detectors.items()
    }
    choices = [spec.choice(*subnet) for subnet in subnets]

    def backbone(depths, operations, choice):
        arch = spec.arch(depths, operations)
        trees = _backbone_variables(detectors[64], variables[64], choice, depths)

        @jax.jit
        def run(trees, batch):
            x = preprocess(batch["image"], batch["image_size"], detectors[64].dtype)
            norm = Normalization(BN_BATCH, batch["weight"])
            return StagedBackbone(arch).apply(trees, x, None, norm)

        return lambda: run(trees, batch)

    static = [backbone(*subnet, choice) for subnet, choice in zip(subnets, choices, strict=True)]
    stage_seconds = _stage_seconds(spec, subnets, choices, detectors[64], variables[64], batch)
    features = static[0]()
    separate_macs, shared_macs = _backbone_macs(spec, subnets, canvas)
    for channels, detector in detectors.items():
        head_variables = {
            kind: {part: leaves for part, leaves in tree.items() if part != "backbone"}
            for kind, tree in variables[channels].items()
        }

        @jax.jit
        def heads(trees, features, size, weight, detector=detector):
            norm = Normalization(BN_BATCH, weight)
            pyramid = detector.module.apply(trees, features, norm, method="neck")
            return detector.module.apply(trees, pyramid, size, canvas, method="detections")

        evaluator = SubnetEvaluator(detector, mesh, _CHUNK.value, num_slots=BEAM)

        def ours(evaluator=evaluator, channels=channels):
            return list(evaluator.detect_in_chunks(variables[channels], batch, choices))

        def loop(trees=head_variables, heads=heads):
            return [heads(trees, run(), batch["image_size"], weight) for run in static]

        def heads_alone(trees=head_variables, heads=heads):
            return heads(trees, features, batch["image_size"], weight)

        functions = {"ours": ours, "loop": loop, "heads": heads_alone}
        seconds = common.medians(functions, _REPEATS.value)
        ratios = {}
        if stage_seconds is not None:
            seconds["distinct stages"] = stage_seconds
            parts = len(subnets) * seconds["heads"] + stage_seconds
            ratios["parts"] = seconds["ours"] / parts
        head_macs = len(subnets) * _head_macs(detector, spec.arch(*subnets[0]), canvas)
        predicted = (head_macs + separate_macs) / (head_macs + shared_macs)
        ratios["loop"] = seconds["ours"] / seconds["loop"]
        ratios["share of predicted"] = seconds["loop"] / seconds["ours"] / predicted
        key = f"{name}, neck {channels}"
        measurements[key] = {
            "ratios": ratios,
            "predicted speed-up": predicted,
            "seconds": seconds,
            "subnets": len(subnets),
        }
        print(key, measurements[key], file=sys.stderr, flush=True)
    return measurements


def _options(channels, size):
    return dataclasses.replace(common.detector_options(size), pyramid_channels=channels)


def _backbone_variables(detector, variables, choice, depths):
    """Return the variables of the stand-alone backbone of a path."""
    network = detector.extract(variables, choice, depths)
    return {kind: tree["backbone"] for kind, tree in network.items()}


def _head_macs(detector, arch, canvas):
    """Count the multiply-adds of neck and heads for one image."""
    parts = detector_parts(
        arch,
        canvas,
        num_rois=detector.options.rpn.post_nms[1],
        pyramid_channels=detector.options.pyramid_channels,
    )
    return sum(part.flops for name, part in parts.items() if name != "backbone")


def _backbone_macs(spec, subnets, canvas):
    """Count the multiply-adds of all backbones for one image.

    Returns:
      Their sum; and the same with every distinct sequence of first blocks counted once.
    """
    separate, distinct = 0, {}
    for depths, operations in subnets:
        arch = spec.arch(depths)
        parts = backbone_parts(arch, canvas)
        (stem,) = parts["stem"]
        stages = [parts[stage.name] for stage in arch.stages]
        separate += stem.flops + sum(block.flops for blocks in stages for block in blocks)
        distinct["stem"], prefix = stem.flops, ()
        codes = iter(operations or [0] * sum(depths))
        for stage, blocks in enumerate(stages):
            for block in blocks:
                # Every depth owns its blocks.
                prefix = (*prefix, (stage, len(blocks), next(codes)))
                distinct[prefix] = block.flops
    return separate, sum(distinct.values())


def _stage_seconds(spec, subnets, choices, detector, variables, batch):
    """Sum the seconds of the stem and of every distinct sequence of first stages.

    Each stage is timed alone.

    Returns:
      None for paths that part within stages.
    """
    if spec.dilations != (1,):
        return None
    norm = detector.normalization(batch, BN_BATCH)
    functions, prefixes = {}, {}
    for (depths, _), choice in zip(subnets, choices, strict=True):
        arch = spec.arch(depths)
        trees = _backbone_variables(detector, variables, choice, depths)

        @jax.jit
        def stem(trees, batch, arch=arch):
            x = preprocess(batch["image"], batch["image_size"], detector.dtype)
            norm = detector.normalization(batch, BN_BATCH)
            return end_module(arch, arch.parts()[0]).apply(trees, x, norm)

        stem_trees = {kind: tree["stem"] for kind, tree in trees.items()}
        x = stem(stem_trees, batch)
        functions.setdefault("stem", lambda trees=stem_trees, stem=stem: stem(trees, batch))
        prefixes["stem"] = {()}
        for part, depth in zip(arch.stages, depths, strict=True):
            module = Stage(arch, part, (1,) * depth, False)
            stage_trees = {kind: tree[part.name] for kind, tree in trees.items()}
            key = (part.stage, depth)
            if key not in functions:
                run = jax.jit(lambda trees, x, module=module: module.apply(trees, x, norm))
                functions[key] = lambda run=run, trees=stage_trees, x=x: run(trees, x)
            x = functions[key]()
            prefixes.setdefault(key, set()).add(depths[: part.stage + 1])
    seconds = common.medians(functions, _REPEATS.value)
    return sum(len(prefixes[key]) * seconds[key] for key in functions)


def peers() -> dict:
    """Measure a candidate's seconds the peers' way and ours, at 256 images a candidate."""
    spec = SupernetSpec(FAMILY, common.HALF_WIDTHS, PAPER_GRIDS)
    side, num_images, num_calibration_images = _PEERS_SIZE.value, 256, 512
    detector = Detector(spec, common.detector_options(side) if side >= 512 else LAPTOP)
    size = ImageSize(side, side)
    val_source = SyntheticSource(num_images, side, 1)
    train_source = SyntheticSource(num_calibration_images, side, 0)
    variables = jax.device_get(jax.jit(detector.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    codes = list(spec.stages.within(BUDGET).enumerate())
    codes = [codes[index] for index in rng.permutation(len(codes))[: _OURS.value]]
    laps = [
        peer_seconds(detector, variables, code, train_source, val_source, size)
        for code in codes[: _PEERS.value]
    ]
    theirs = {part: float(np.mean([seconds[part] for seconds in laps])) for part in laps[0]}
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(pathlib.Path(folder) / "journal.jsonl", "benchmark")
        options = ScoreOptions(16, size, max_subnets_per_call=_CHUNK.value)
        start = time.perf_counter()
        scorer = SubnetScorer(
            detector, variables, train_source, val_source, options, journal, folder
        )
        scorer.score("stage", codes, lambda code, _: spec.choice(code))
        ours = (time.perf_counter() - start) / len(codes)
    detnas = {**theirs, "recalibrate": theirs["recalibrate"] * 4000 / num_calibration_images}
    factor = 5000 / num_images
    detnas_5000 = detnas | {"images": factor * theirs["images"]}
    # All of our time is taken to grow with the images: hardly any of it does not.
    return {
        "ratios": {
            "peers, 256 images": sum(detnas.values()) / ours,
            "peers, 256 images, same statistics": sum(theirs.values()) / ours,
            "peers, 5000 images": sum(detnas_5000.values()) / (factor * ours),
        },
        "seconds_per_candidate": {**theirs, "ours": ours},
        "candidates": {"peers": len(laps), "ours": len(codes)},
        "images": num_images,
        "calibration_images": num_calibration_images,
        "size": side,
        "hours, 153 allocations x 5000 images, exhaustive": ours * factor * 153 / 3600,
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main)
