"""The supernet's training step beside static networks: compilation, time, activation memory.

    python benchmarks/supernet_step.py                                   CPU: 256 pixels, batch 2
    python benchmarks/supernet_step.py --height=800 --width=1344         accelerator

The whole detector on the paper's grid (bottlenecks of half width, 307 blocks, own weights for each
branch). Ratios and their targets (design):

- `compile`, over ResNet-50's allocation as a static network: at most 3;
- `step`, over the same static network: at most 1.1 on an accelerator, 2.5 on the CPU;
- `activation memory`, temporaries of the gradient step over those of the static deepest network of
  the grid, without and with `remat` on both sides: at most 1.25.

The supernet's scan always recomputes normalisation and ReLU (`models.supernet.module`); that is not
`remat`. The persistent compilation cache is not used. A step's time is that of its three programs
together.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import jax
from absl import app, flags

from crnas_jax.arch.staged import Arch
from crnas_jax.models.build import Detector
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.spaces.stages import PAPER_GRIDS
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

_HEIGHT = flags.DEFINE_integer("height", 256, "Height of the canvas, pixels.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the canvas, pixels.")
_BATCH = flags.DEFINE_integer("batch", 2, "Images in a step.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed steps.")
_PRECISION = flags.DEFINE_string("precision", "float32", "float32 or bfloat16.")

FAMILY, DEPTHS = "resnet_bottleneck", (3, 4, 6, 3)


def main(_):
    batch = common.random_batch(_BATCH.value, _HEIGHT.value, _WIDTH.value)
    options = common.detector_options(min(_HEIGHT.value, _WIDTH.value))
    mesh, parts = common.device_parts(batch)
    optimizer = make_optimizer(OptimizerOptions(), _BATCH.value, 1000)
    supernet = SupernetSpec(FAMILY, common.HALF_WIDTHS, PAPER_GRIDS)
    networks = {
        "supernet": (supernet, supernet.choice(DEPTHS)),
        "static": (Arch(FAMILY, DEPTHS, widths=common.HALF_WIDTHS), None),
        "deepest": (supernet.deepest, None),
    }

    def trainer(name, remat):
        model = Detector(networks[name][0], options, remat, _PRECISION.value)
        return Trainer(model, optimizer, mesh, seed=0)

    compiled = {
        f"{name}{' remat' if remat else ''}": common.compile_step(
            trainer(name, remat), parts[0], networks[name][1]
        )
        for name, remat in [
            ("supernet", False),
            ("static", False),
            ("deepest", False),
            ("supernet", True),
            ("deepest", True),
        ]
    }

    steps = {
        name: common.stepper(trainer(name, remat=False), parts, networks[name][1])[0]
        for name in ("supernet", "static")
    }
    seconds = common.medians(steps, _REPEATS.value)

    def memory_ratio(suffix):
        temp_bytes = {name: step["temp_bytes"] for name, step in compiled.items()}
        return temp_bytes[f"supernet{suffix}"] / temp_bytes[f"deepest{suffix}"]

    common.report(
        "supernet_step",
        {
            "canvas": [_HEIGHT.value, _WIDTH.value],
            "batch": _BATCH.value,
            "precision": _PRECISION.value,
            "ratios": {
                "compile": compiled["supernet"]["compile_seconds"]
                / compiled["static"]["compile_seconds"],
                "step": seconds["supernet"] / seconds["static"],
                "activation memory": memory_ratio(""),
                "activation memory, remat": memory_ratio(" remat"),
            },
            "step_seconds": seconds,
            "compiled": compiled,
        },
    )


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main)
