"""The detector's training step: what bfloat16, remat and accumulation cost and save.

    python benchmarks/train_step.py                                      CPU: 256 pixels, batch 4
    python benchmarks/train_step.py --height=800 --width=1344 --batch=16 --widths=standard

ResNet-50 with Faster R-CNN and FPN. Each variant is compared with the plain step (float32, whole
batch): time, temporary memory, the loss of the first step, and the largest difference of the loss
over ten steps on one batch, where rounding changes which proposals are drawn and the runs part.
Half a batch has other batch statistics than the whole, so accumulation differs from the first step
on (`tests/training/test_step.py` checks that the variants agree where proposals and statistics are
the same). On the CPU remat saves nothing in a network without a loop: its scheduler starts the
recomputation early. The persistent compilation cache is not used.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import jax
from absl import app, flags

from crnas_jax.arch.staged import Arch
from crnas_jax.models.build import Detector
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

_HEIGHT = flags.DEFINE_integer("height", 256, "Height of the canvas, pixels.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the canvas, pixels.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images in a step.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps.")
_WIDTHS = flags.DEFINE_enum("widths", "half", ["half", "standard"], "Widths of the backbone.")

# Name: (precision, remat, number of parts of the batch).
VARIANTS = {
    "plain": ("float32", False, 1),
    "bfloat16": ("bfloat16", False, 1),
    "remat": ("float32", True, 1),
    "accumulate 2": ("float32", False, 2),
    "bfloat16, remat": ("bfloat16", True, 1),
}


def main(_):
    batch = common.random_batch(_BATCH.value, _HEIGHT.value, _WIDTH.value)
    options = common.detector_options(min(_HEIGHT.value, _WIDTH.value))
    widths = common.HALF_WIDTHS if _WIDTHS.value == "half" else ()
    arch = Arch("resnet_bottleneck", (3, 4, 6, 3), widths=widths)
    optimizer = make_optimizer(OptimizerOptions(warmup_steps=1), _BATCH.value, 1000)
    compiled, steps, losses = {}, {}, {}
    for name, (precision, remat, num_parts) in VARIANTS.items():
        mesh, parts = common.device_parts(batch, num_parts)
        trainer = Trainer(Detector(arch, options, remat, precision), optimizer, mesh, seed=0)
        compiled[name] = common.compile_step(trainer, parts[0])
        steps[name], losses[name] = common.stepper(trainer, parts)
    seconds = common.medians(steps, _REPEATS.value)
    for name, step in steps.items():
        while len(losses[name]) < 10:
            step()
        losses[name] = [float(loss) for loss in losses[name][:10]]
    plain_bytes = compiled["plain"]["temp_bytes"]
    common.report(
        "train_step",
        {
            "canvas": [_HEIGHT.value, _WIDTH.value],
            "batch": _BATCH.value,
            "widths": list(widths),
            "ratios": {
                name: {
                    "step": seconds[name] / seconds["plain"],
                    "memory": compiled[name]["temp_bytes"] / plain_bytes,
                    "first loss": losses[name][0] / losses["plain"][0],
                    "greatest loss difference": max(
                        abs(loss / plain - 1)
                        for loss, plain in zip(losses[name], losses["plain"], strict=True)
                    ),
                }
                for name in VARIANTS
            },
            "images_per_second": {name: _BATCH.value / value for name, value in seconds.items()},
            "losses": losses,
            "compiled": compiled,
        },
    )


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main)
