"""The batched evaluator beside its parts, beside static networks, and beside the peers' way.

    python benchmarks/evaluator.py                                            CPU: 256 pixels
    python benchmarks/evaluator.py --height=800 --width=1344 --batch=16       accelerator

ResNet-50's supernets on the paper's grid at half width, in the whole detector, for necks of 256 and
64 channels. Ratios and their targets:

- `parts`: 12 random allocations over (12 x neck and heads + stem + every distinct beginning of
  stages once), each timed alone as a static program: at most 1.1;
- `loop`: the same over a loop of 12 static networks, and one step of the greedy search (9 partial
  codes of 3 kept ones; 3 at the first block) at the first, middle and last block over such a loop,
  compilation left out: at most 1.05;
- `share of predicted`: the speed-up over that loop, over what the multiply-adds that subnets share
  predict: at least 0.85;
- `peers`: a candidate's seconds the peers' way (build the network, recalibrate it, compile it, read
  256 images, detect, pycocotools) over ours (all candidates in one go, compilation included): at
  least 10. Recalibration takes 500 mini-batches of 8 images with them (DetNAS; what 512 images
  take, times 4000 / 512) and 512 images with us; `same statistics` is with 512 for both. From the
  same figures for 5,000 images, and with all allocations of the budget the length of a whole
  search. On the CPU with the heads of `configs/quickstart.py`, what a laptop would run.

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
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from crnas_jax.arch.cost import detectors as cost
from crnas_jax.data import loader
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.evaluation.coco import CocoEvaluator, compact, to_results
from crnas_jax.models.backbones.resnet import ResNetStem
from crnas_jax.models.backbones.staged import Backbone, Stage
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.box_head import BoxHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.layers import BN_BATCH, BN_COLLECT, preprocess
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.search.journal import Journal
from crnas_jax.search.strategies.greedy import complete
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer
from crnas_jax.spaces.stages import PAPER_DILATIONS, PAPER_GRIDS, OperationSpace, StageSpace

_HEIGHT = flags.DEFINE_integer("height", 256, "Of the canvas, pixels.")
_WIDTH = flags.DEFINE_integer("width", 256, "Of the canvas, pixels.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images in a mini-batch.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs; medians count.")
_CHUNK = flags.DEFINE_integer("chunk", 0, "Most subnets in a call; 0 for automatic.")
_PRECISION = flags.DEFINE_string("precision", "float32", "float32 or bfloat16.")
_PEERS_SIZE = flags.DEFINE_integer("peers_size", 96, "Side of the images for `peers`, pixels.")
_PEERS = flags.DEFINE_integer("peers", 3, "Candidates that are scored the peers' way.")
_OURS = flags.DEFINE_integer("ours", 153, "Candidates that are scored our way.")
_PARTS = flags.DEFINE_list("only", ["shared", "peers"], "Which measurements.")

FAMILY, DEPTHS, BUDGET, SUBNETS, KEEP = "resnet_bottleneck", (3, 4, 6, 3), 16, 12, 3
NECKS = (256, 64)
LAPTOP = DetectorOptions(
    80,
    64,
    RPNOptions(pre_nms=(300, 200), post_nms=(200, 100)),
    BoxHeadOptions(head_channels=256, nms_candidates=300),
)


def main(_):
    result = {"canvas": [_HEIGHT.value, _WIDTH.value], "batch": _BATCH.value, "ratios": {}}
    if "shared" in _PARTS.value:
        for name, found in shared().items():
            result["ratios"][name] = found.pop("ratios")
            result[name] = found
    if "peers" in _PARTS.value:
        result["peers"] = peers()
        result["ratios"] |= result["peers"].pop("ratios")
    parts = "" if len(_PARTS.value) > 1 else f"_{_PARTS.value[0]}"
    common.report(f"evaluator{parts}", result)


def options(channels, size):
    return dataclasses.replace(common.detector_options(size), pyramid_channels=channels)


def shared():
    """The evaluator beside its parts and beside static networks."""
    batch = common.random_batch(_BATCH.value, _HEIGHT.value, _WIDTH.value)
    mesh, (batch,) = common.device_parts(batch)
    rng, found = np.random.default_rng(0), {}
    spec = SupernetSpec(FAMILY, common.HALF_WIDTHS, PAPER_GRIDS)
    codes = [StageSpace().sample(rng, BUDGET) for _ in range(SUBNETS)]
    lists = {"allocations": (spec, [(depths, None) for depths in codes])}
    spec = SupernetSpec(FAMILY, common.HALF_WIDTHS, tuple((d,) for d in DEPTHS), PAPER_DILATIONS)
    space = OperationSpace(DEPTHS)
    for name, block in (("first", 0), ("middle", space.blocks // 2), ("last", space.blocks - 1)):
        kept = sorted({tuple(rng.integers(3, size=block).tolist()) for _ in range(KEEP)})
        partial = [(*code, operation) for code in kept for operation in range(3)]
        full = [(DEPTHS, complete(space, code, 0, 0)) for code in partial]
        lists[f"greedy, {name} block"] = (spec, full)
    for name, (spec, subnets) in lists.items():
        found |= _beside_static(name, spec, subnets, mesh, batch)
    return found


def _beside_static(name, spec, subnets, mesh, batch):
    """Both necks: the backbones are the same programs."""
    weight, canvas, found = batch["weight"], batch["image"].shape[1:3], {}
    detectors = {
        n: Detector(spec, options(n, min(canvas)), precision=_PRECISION.value) for n in NECKS
    }
    variables = {n: jax.jit(detector.init)(jax.random.key(0)) for n, detector in detectors.items()}
    choices = [spec.choice(*subnet) for subnet in subnets]
    dtype = jnp.dtype(_PRECISION.value)

    def backbone(depths, operations, choice):
        arch = spec.arch(depths, operations)
        own = detectors[64].extract(variables[64], choice, depths)
        trees = {kind: tree["backbone"] for kind, tree in own.items()}

        @jax.jit
        def run(trees, batch):
            x = preprocess(batch["image"], batch["image_size"], dtype)
            return Backbone(arch).apply(trees, x, None, BN_BATCH, batch["weight"])

        return lambda: run(trees, batch)

    static = [backbone(*subnet, choice) for subnet, choice in zip(subnets, choices, strict=True)]
    parts = _stages(spec, subnets, choices, detectors[64], variables[64], batch, dtype)
    features = static[0]()
    backbone_macs = _shared_macs(spec, subnets, canvas)
    for channels, detector in detectors.items():
        others = {
            kind: {part: own for part, own in tree.items() if part != "backbone"}
            for kind, tree in variables[channels].items()
        }

        @jax.jit
        def heads(trees, features, size, weight, detector=detector):
            pyramid = detector.module.apply(trees, features, BN_BATCH, weight, method="neck")
            return detector.module.apply(trees, pyramid, size, canvas, method="detections")

        evaluator = SubnetEvaluator(detector, mesh, _CHUNK.value or None, slots=KEEP)

        def ours(evaluator=evaluator, channels=channels):
            return list(evaluator.detect_in_chunks(variables[channels], batch, choices))

        def loop(others=others, heads=heads):
            return [heads(others, run(), batch["image_size"], weight) for run in static]

        runs = {
            "ours": ours,
            "loop": loop,
            "heads": lambda others=others, heads=heads: heads(
                others, features, batch["image_size"], weight
            ),
        }
        seconds = common.medians(runs, _REPEATS.value)
        heads_alone = len(subnets) * seconds["heads"]
        if parts is not None:
            seconds["distinct stages"] = parts
        rest = sum(
            part.flops
            for part_name, part in cost.parts(
                spec.arch(*subnets[0]),
                canvas,
                rois=detector.options.rpn.post_nms[1],
                pyramid_channels=channels,
            ).items()
            if part_name != "backbone"
        )
        separate, once = (len(subnets) * rest + macs for macs in backbone_macs)
        predicted = separate / once
        found[f"{name}, neck {channels}"] = {
            "ratios": {
                **({} if parts is None else {"parts": seconds["ours"] / (heads_alone + parts)}),
                "loop": seconds["ours"] / seconds["loop"],
                "share of predicted": seconds["loop"] / seconds["ours"] / predicted,
            },
            "predicted speed-up": predicted,
            "seconds": seconds,
            "subnets": len(subnets),
        }
        print(name, channels, found[f"{name}, neck {channels}"], file=sys.stderr, flush=True)
    return found


def _shared_macs(spec, subnets, canvas):
    """Multiply-adds of all backbones, and with every distinct beginning of blocks counted once."""
    separate, nodes = 0, {}
    for depths, operations in subnets:
        stem, stages, _ = cost.backbone_parts(spec.arch(depths), canvas)
        separate += stem.flops + sum(block.flops for stage in stages for block in stage)
        nodes["stem"], prefix = stem.flops, ()
        codes = iter(operations or [0] * sum(depths))
        for stage, blocks in enumerate(stages):
            for block in blocks:
                # Every depth owns its blocks.
                prefix = (*prefix, (stage, len(blocks), next(codes)))
                nodes[prefix] = block.flops
    return separate, sum(nodes.values())


def _stages(spec, subnets, choices, detector, variables, batch, dtype):
    """Seconds of the stem and of every distinct beginning of stages, each stage timed alone; None
    of paths that part within stages.
    """
    if spec.dilations != (1,):
        return None
    weight, runs, uses = batch["weight"], {}, {}
    for (depths, _), choice in zip(subnets, choices, strict=True):
        arch = spec.arch(depths)
        own = detector.extract(variables, choice, depths)
        trees = {kind: tree["backbone"] for kind, tree in own.items()}

        @jax.jit
        def stem(trees, batch):
            x = preprocess(batch["image"], batch["image_size"], dtype)
            module = ResNetStem(spec.deepest.stem_channels)
            return module.apply(trees, x, BN_BATCH, batch["weight"])

        stem_trees = {kind: tree["stem"] for kind, tree in trees.items()}
        x = stem(stem_trees, batch)
        runs.setdefault("stem", lambda trees=stem_trees, stem=stem: stem(trees, batch))
        uses["stem"] = {()}
        for stage, depth in enumerate(depths):
            module = Stage(arch, stage, (1,) * depth, False)
            part = {kind: tree[f"stage{stage + 1}"] for kind, tree in trees.items()}
            key = (stage, depth)
            if key not in runs:
                run = jax.jit(
                    lambda trees, x, module=module: module.apply(trees, x, BN_BATCH, weight)
                )
                runs[key] = lambda run=run, part=part, x=x: run(part, x)
            x = runs[key]()
            uses.setdefault(key, set()).add(depths[: stage + 1])
    seconds = common.medians(runs, _REPEATS.value)
    return sum(len(uses[key]) * seconds[key] for key in runs)


def peers():
    """Seconds of a candidate the peers' way and ours, at 256 images a candidate."""
    spec = SupernetSpec(FAMILY, common.HALF_WIDTHS, PAPER_GRIDS)
    side, images, calibration = _PEERS_SIZE.value, 256, 512
    detector = Detector(spec, common.detector_options(side) if side >= 512 else LAPTOP)
    size = ImageSize(side, side)
    source, train = (SyntheticSource(n, side, s) for n, s in ((images, 1), (calibration, 0)))
    variables = jax.device_get(jax.jit(detector.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    codes = list(StageSpace().enumerate(BUDGET))
    codes = [codes[index] for index in rng.permutation(len(codes))[: _OURS.value]]
    rows = [
        _peer(detector, variables, spec, code, train, source, size)
        for code in codes[: _PEERS.value]
    ]
    theirs = {part: float(np.mean([row[part] for row in rows])) for part in rows[0]}
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(pathlib.Path(folder) / "journal.jsonl", "benchmark")
        scoring = ScoreOptions(16, size, chunk=_CHUNK.value or None)
        began = time.perf_counter()
        scorer = SubnetScorer(detector, variables, train, source, scoring, journal, folder)
        scorer.score("stage", codes, lambda code, _: spec.choice(code))
        ours = (time.perf_counter() - began) / len(codes)
    detnas = {**theirs, "recalibrate": theirs["recalibrate"] * 4000 / calibration}
    more = 5000 / images
    # What our way takes for an image is taken for all of its time: it hardly has anything else.
    return {
        "ratios": {
            "peers, 256 images": sum(detnas.values()) / ours,
            "peers, 256 images, same statistics": sum(theirs.values()) / ours,
            "peers, 5000 images": sum((detnas | {"images": more * theirs["images"]}).values())
            / (more * ours),
        },
        "seconds_per_candidate": {**theirs, "ours": ours},
        "candidates": {"peers": len(rows), "ours": len(codes)},
        "images": images,
        "calibration_images": calibration,
        "size": side,
        "hours, 153 allocations x 5000 images, exhaustive": ours * more * 153 / 3600,
    }


def _peer(detector, variables, spec, code, train, source, size):
    """One candidate: build, recalibrate, compile, read, detect, pycocotools."""
    began, seconds = time.perf_counter(), {}

    def lap(part):
        nonlocal began
        seconds[part], began = time.perf_counter() - began, time.perf_counter()

    mesh, rows = make_mesh(16, 1), DetectionRows(size)
    alone = Detector(spec.arch(code), detector.options)
    own = jax.device_put(detector.extract(variables, spec.choice(code), code))

    @jax.jit
    def moments(variables, batch):
        return alone.module.apply(
            variables, batch, None, BN_COLLECT, method="features", mutable=["batch_stats"]
        )[1]["batch_stats"]

    def batches(source):
        plan = loader.Plan(source.sizes, 16, None)
        for batch in loader.batches(source, plan, rows):
            yield batch, put_batch(mesh, batch)

    batch = next(batches(train))[1]
    jax.block_until_ready(moments(own, batch))
    lap("build, compile statistics")
    stats = own["batch_stats"]
    for _, batch in batches(train):
        new = moments(own, batch)
        stats = jax.tree.map(lambda kept, value: 0.9 * kept + 0.1 * value, stats, new)
    own = jax.block_until_ready({**own, "batch_stats": stats})
    lap("recalibrate")
    detect = jax.jit(lambda variables, batch: alone.apply(variables, batch, None))
    _, batch = next(batches(source))
    jax.block_until_ready(detect(own, batch))
    lap("compile")
    results = []
    for batch, device in batches(source):
        found = jax.device_get(detect(own, device))
        results += to_results(compact(found, batch), source.category_ids)
    CocoEvaluator.of(source).evaluate(results)
    lap("images")
    return seconds


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main)
