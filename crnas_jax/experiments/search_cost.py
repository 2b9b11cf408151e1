"""What a search will cost, measured before it starts."""

import sys
import time

import jax
import numpy as np

from crnas_jax.data import loader
from crnas_jax.data.transforms import DetectionRows
from crnas_jax.experiments.costs import scorings
from crnas_jax.experiments.keys import chosen
from crnas_jax.experiments.run import Run
from crnas_jax.parallel.mesh import jit_once, make_mesh, put_batch
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import supernets as supernet_settings

# Subnets that are timed.
_NUM_TIMED = 6


def search_cost(run: Run, level: str) -> dict:
    """Count a search's work and time a little of it, on freshly drawn weights.

    The device's work is timed; reading images, matching and intervals go on beside it, and with
    small networks on a CPU may take as long. Latency limits are not considered. The dilations of
    the chosen allocation count if there is one yet, else those of the baseline.

    Args:
      run: the run.
      level: `stage` or `operation`.

    Returns:
      `evaluations`; `image_passes` (an image through a subnet, at most); `seconds_per_image_pass`;
      `device_hours`, including the statistics; `devices`.
    """
    config = run.config
    if level == "stage":
        spec = supernet_settings.stage_supernet(config)
        limits = search_settings.limits(config, run.num_classes)
        spaces = list(search_settings.limited_stages(config, limits).values())
    else:
        # The chosen allocation if this run has one, else the baseline's.
        arch = chosen(run, "allocation") or model_settings.baseline(config)
        spec = supernet_settings.operation_supernet(config, arch)
        spaces = [supernet_settings.operation_space(config, arch)]
    rng = np.random.default_rng(0)
    codes = [spaces[0].sample(rng) for _ in range(10 * _NUM_TIMED)]
    codes = list(dict.fromkeys(codes))[:_NUM_TIMED]
    choices = [
        spec.choice(code)
        if level == "stage"
        else spec.choice_of(model_settings.dilated(arch, spaces[0].dilations_of(code)))
        for code in codes
    ]
    detector = model_settings.detector(config, spec, run.num_classes)
    variables = jit_once(detector.init)(jax.random.key(0))
    parts, image_passes, total, seconds_per_image = scorings(run, level, spaces), 0, 0.0, None
    for part in parts:
        options = part.options
        plan, num_batches = options.score_plan(run.sources["val"])
        num_images, num_statistics = part.num_images(run)
        seconds, statistics = _measure(
            detector, variables, options, run.sources["val"], plan, choices
        )
        batches_of_statistics = num_statistics // options.batch_size
        total += part.count * (num_batches * seconds + batches_of_statistics * statistics)
        image_passes += part.count * num_images
        # Of what the search scores first, which is nearly all.
        seconds_per_image = seconds_per_image or seconds / options.batch_size
    num_devices = run.options.num_devices or len(jax.devices())
    return {
        "evaluations": sum(part.count for part in parts),
        "image_passes": image_passes,
        "seconds_per_image_pass": seconds_per_image,
        "device_hours": total * num_devices / 3600,
        "devices": num_devices,
    }


def _measure(detector, variables, options, source, plan, choices):
    """Return seconds for a subnet on a mini-batch, for detections and for statistics."""
    print(f"compiling, then timing {len(choices)} subnets", file=sys.stderr, flush=True)
    mesh = make_mesh(options.batch_size, options.num_devices)
    evaluator = SubnetEvaluator(detector, mesh, options.max_subnets_per_call, options.num_slots)
    batch = put_batch(mesh, next(loader.batches(source, plan, DetectionRows(options.size), stop=1)))

    def seconds(run):
        for _ in range(2):  # the first compiles
            start = time.perf_counter()
            jax.block_until_ready(run())
            duration = time.perf_counter() - start
        return duration / len(choices)

    detections = seconds(lambda: list(evaluator.detect_in_chunks(variables, batch, choices)))
    if options.bn != "recalibrate":
        return detections, 0.0
    return detections, seconds(lambda: evaluator.moments(variables, batch, choices))
