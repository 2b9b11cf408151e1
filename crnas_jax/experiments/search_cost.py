"""What a search will cost, before it starts."""

import time

import jax
import numpy as np

from crnas_jax.data import loader
from crnas_jax.data.transforms import DetectionRows
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.search.strategies import successive_halving as racing
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.settings.run import Settings

# Subnets that are timed.
_SAMPLE = 6


def search_cost(settings: Settings, sources: dict, level: str, depths=None) -> dict:
    """Counts a search's work and times a little of it, on freshly drawn weights.

    What is timed is the device's work; reading images, matching and intervals go on beside it, and
    with small networks on a CPU may take as long. Latency limits are not looked at.

    Args:
      settings: of the run.
      sources: splits of the data by name.
      level: `stage` or `operation`.
      depths: for `operation`, of the network whose dilations are searched; the baseline's when
        None.

    Returns:
      `evaluations`; `image_passes` (an image through a subnet, at most); `seconds_per_image_pass`;
      `device_hours`, those of the statistics included; `devices`.
    """
    fields, depths = settings.config.search, depths or settings.baseline.depths
    name, classes = fields[f"{level}_strategy"], len(sources["train"].class_names)
    options = settings.score_options("batch" if name == "greedy" else fields.bn)
    plan, batches = options.plan(sources["val"])
    images = len(plan.first(batches))
    if level == "stage":
        spec, budgets = settings.stage_supernet(), settings.budgets
        space = settings.allowed_stages(classes)
        counts = [sum(1 for _ in space.enumerate(budget)) for budget in budgets]
    else:
        spec, space = settings.operation_supernet(depths), settings.operation_space(depths)
        budgets, counts = (None,), [space.count()]
    if name == "greedy":
        counts = [space.evaluations(fields.keep)]
    elif name in ("random", "evolution"):
        counts = [min(count, fields.evaluations) for count in counts]
    evaluations = sum(counts)
    passes = evaluations * batches
    if name == "halving":
        truth, ids = GroundTruth.of(sources["val"]), sources["val"].image_ids
        first = racing.fewest(
            batches,
            lambda b: len(plan.first(b)),
            lambda b: truth.counted_in(ids[plan.first(b)]).sum(),
        )
        passes = racing.passes(counts, batches, first)
    rng = np.random.default_rng(0)
    codes = [space.sample(rng, budgets[0]) for _ in range(10 * _SAMPLE)]
    codes = list(dict.fromkeys(codes))[:_SAMPLE]
    choices = [
        spec.choice(code) if level == "stage" else spec.choice(depths, code) for code in codes
    ]
    detector = settings.detector(spec, classes)
    seconds, statistics = _measure(detector, options, sources["val"], plan, choices)
    total = passes * seconds
    if options.bn == "recalibrate":
        total += evaluations * options.calibration(sources["train"])[1] * statistics
    devices = settings.devices or len(jax.devices())
    return {
        "evaluations": evaluations,
        "image_passes": round(passes * images / batches),
        "seconds_per_image_pass": seconds / options.batch_size,
        "device_hours": total * devices / 3600,
        "devices": devices,
    }


def _measure(detector, options, source, plan, choices):
    """Seconds of a subnet on a mini-batch, for detections and for statistics."""
    mesh = make_mesh(options.batch_size, options.devices)
    variables = jax.jit(detector.init)(jax.random.key(0))
    evaluator = SubnetEvaluator(detector, mesh, options.chunk, options.slots)
    batch = put_batch(mesh, next(loader.batches(source, plan, DetectionRows(options.size), stop=1)))

    def seconds(run):
        for _ in range(2):  # the first compiles
            began = time.perf_counter()
            jax.block_until_ready(run())
            last = time.perf_counter() - began
        return last / len(choices)

    detections = seconds(lambda: list(evaluator.detect_in_chunks(variables, batch, choices)))
    if options.bn != "recalibrate":
        return detections, 0.0
    return detections, seconds(lambda: evaluator.moments(variables, batch, choices))
