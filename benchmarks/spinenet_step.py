"""Steps of SpineNet and of ResNet-50 with FPN in RetinaNet: compile time, step time, memory.

    python benchmarks/spinenet_step.py [--parts=compile,small]

`compile`: SpineNet-49 and 190 over ResNet-50-FPN with the same head, at the same canvas; targets:
at most 3 and 5. Everything is compiled twice, in turn, and the shorter time counts. `small`: step
time and memory of the two networks of `spinenet_study.py`, which have equal multiply-adds. The
persistent compilation cache is not used.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import jax
from absl import app, flags
from spinenet_study import RESNET

from configs import spinenet
from crnas_jax.arch import zoo
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.settings import models as model_settings
from crnas_jax.training import step
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

_PARTS = flags.DEFINE_list("parts", ["compile", "small"], "What is measured.")
_SIZE = flags.DEFINE_integer("size", 256, "Side of the canvas, pixels.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed steps of each network.")
_COMPILED = ("resnet50", "spinenet49", "spinenet190")


def main(_):
    result = {}
    if "compile" in _PARTS.value:
        result["compile"] = _compile()
    if "small" in _PARTS.value:
        result["small"] = _small()
    common.report("spinenet_step", result)


def _trainer(detector, num_images):
    mesh, parts = common.device_parts(common.random_batch(num_images, _SIZE.value, _SIZE.value))
    optimizer = make_optimizer(OptimizerOptions(), num_images, 1000)
    return Trainer(detector, optimizer, mesh, seed=0), parts


def _compile():
    measured = {}
    for name in _COMPILED * 2:
        # The same head on all: 190's own has seven convolutions.
        head = RetinaHeadOptions("spinenet", num_convolutions=4)
        trainer, parts = _trainer(Detector(zoo.get(name), RetinaNetOptions(80, head=head)), 2)
        step._shared_programs.cache_clear()  # programs of the first time are not compiled again
        jax.clear_caches()
        measurement = common.compile_step(trainer, parts[0])
        print(f"{name}: {measurement}", flush=True)
        seconds = [measurement, *([measured[name]] if name in measured else [])]
        measured[name] = min(seconds, key=lambda one: one["compile_seconds"])
    first = measured[_COMPILED[0]]["compile_seconds"]
    ratios = {name: measured[name]["compile_seconds"] / first for name in _COMPILED[1:]}
    return {"canvas": [_SIZE.value] * 2, "batch": 2, "ratios": ratios, "compiled": measured}


def _small():
    config = spinenet.get_config("small")
    networks = {"resnet": RESNET, "spinenet": zoo.get("spinenet49_quarter")}
    functions, memory = {}, {}
    for name, arch in networks.items():
        trainer, parts = _trainer(model_settings.detector(config, arch, 80), 8)
        memory[name] = common.compile_step(trainer, parts[0])["temp_bytes"]
        functions[name] = common.stepper(trainer, parts)[0]
    seconds = common.medians(functions, _REPEATS.value)
    return {
        "batch": 8,
        "seconds": seconds,
        "temp_bytes": memory,
        "spinenet over resnet": {
            "seconds": seconds["spinenet"] / seconds["resnet"],
            "temp_bytes": memory["spinenet"] / memory["resnet"],
        },
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main)
