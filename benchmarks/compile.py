"""Compile time of every family's supernet step over its static network's; target: at most 3.

    python benchmarks/compile.py [--archs=resnet50,mobilenet_v2]

The whole detector, 256 pixels, batch 2, at the paper's grids and supernet widths; the static
network is the baseline at the same widths. Stage supernets have one dilation and all depths,
operation supernets the baseline's depths and three dilations. Everything is compiled twice, in
turn, and the shorter time counts, because other work on the machine only ever adds to it. Nothing
is run, and the persistent compilation cache is not used.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import jax
from absl import app, flags

from configs import base
from crnas_jax.models.build import Detector
from crnas_jax.settings.models import baseline
from crnas_jax.settings.supernets import operation_supernet, stage_supernet
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

_ARCHS = flags.DEFINE_list(
    "archs", ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2"], "Baselines in the zoo."
)
_SIZE = flags.DEFINE_integer("size", 256, "Side of the canvas, pixels.")


def main(_):
    batch = common.random_batch(2, _SIZE.value, _SIZE.value)
    options = common.detector_options(_SIZE.value)
    mesh, parts = common.device_parts(batch)
    optimizer = make_optimizer(OptimizerOptions(), 2, 1000)
    ratios, compiled = {}, {}
    for name in _ARCHS.value:
        config = base.get_config()
        config.baseline = name
        arch = baseline(config)
        depths = arch.depths
        supernets = {
            "stage": stage_supernet(config),
            "operation": operation_supernet(config, arch),
        }
        networks = {"static": (supernets["stage"].arch(depths), None)}
        networks |= {level: (spec, spec.choice(depths)) for level, spec in supernets.items()}
        for level, (spec, choice) in [*networks.items()] * 2:
            trainer = Trainer(Detector(spec, options), optimizer, mesh, seed=0)
            measurement = common.compile_step(trainer, parts[0], choice)
            key = f"{name} {level}"
            print(f"{key}: {measurement}", flush=True)
            compiled[key] = min(
                measurement,
                compiled.get(key, measurement),
                key=lambda measurement: measurement["compile_seconds"],
            )
        for level in supernets:
            ratios[f"{name} {level}"] = (
                compiled[f"{name} {level}"]["compile_seconds"]
                / compiled[f"{name} static"]["compile_seconds"]
            )
    sizes = {"canvas": [_SIZE.value] * 2, "batch": 2}
    common.report("compile", {**sizes, "ratios": ratios, "compiled": compiled})


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main)
