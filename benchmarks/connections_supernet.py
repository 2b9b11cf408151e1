"""Step of a supernet over connections, over that of one of its networks: compile and step time.

    python benchmarks/connections_supernet.py

Eight permuted blocks in RetinaNet at 192 x 256 pixels, batch 8; the network is the path with the
architecture's own connections, in which every block reaches an output. The supernet's steps are
those of drawn paths. Targets: at most 5 minutes to compile, and 2.5 times the network's step. The
persistent compilation cache is not used.
"""

import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import jax
from absl import app, flags

from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted, StemBlock
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.models.supernet.connection_spec import ConnectionSupernetSpec
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

_REPEATS = flags.DEFINE_integer("repeats", 12, "Timed steps of each network.")
_HEIGHT = flags.DEFINE_integer("height", 192, "Height of the canvas, pixels.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the canvas, pixels.")
_BATCH = flags.DEFINE_integer("batch", 8, "Images in a batch.")
# Level, kind and parents of each block, of which the last three are outputs.
_BLOCKS = (
    *((2, "bottleneck", (0, 1)), (3, "bottleneck", (0, 1)), (4, "residual", (2, 3))),
    *((4, "bottleneck", (3, 4)), (5, "residual", (4, 5)), (4, "bottleneck", (5, 6))),
    *((3, "bottleneck", (3, 7)), (5, "bottleneck", (6, 7))),
)
ARCH = ScalePermuted(
    "spinenet",
    (StemBlock(2), StemBlock(2)),
    tuple(
        PermutedBlock(level, kind, parents, is_output=place >= 5)
        for place, (level, kind, parents) in enumerate(_BLOCKS)
    ),
    width_scale=0.25,
    alpha=0.25,
    endpoint_channels=64,
)


def main(_):
    spec = ConnectionSupernetSpec(ARCH)
    options = RetinaNetOptions(80, head=RetinaHeadOptions("spinenet", num_convolutions=2))
    optimizer = make_optimizer(OptimizerOptions(), _BATCH.value, 1000)
    batch = common.random_batch(_BATCH.value, _HEIGHT.value, _WIDTH.value)
    mesh, parts = common.device_parts(batch)
    compiled, functions = {}, {}
    for name, described in {"network": ARCH, "supernet": spec}.items():
        trainer = Trainer(Detector(described, options), optimizer, mesh, seed=0)
        choice = trainer.model.sample(0, 0)
        compiled[name] = common.compile_step(trainer, parts[0], choice)
        print(f"{name}: {compiled[name]}", flush=True)
        functions[name] = _stepper(trainer, parts)
    seconds = common.medians(functions, _REPEATS.value)
    result = {
        "canvas": [_HEIGHT.value, _WIDTH.value],
        "batch": _BATCH.value,
        "blocks": len(ARCH.blocks),
        "paths": spec.num_paths,
        "compiled": compiled,
        "seconds": seconds,
        "step over the network's": seconds["supernet"] / seconds["network"],
    }
    common.report("connections_supernet", result)


def _stepper(trainer, parts):
    """Return a function that takes the next step of a training, with its path."""
    state, steps = [trainer.init()], itertools.count()

    def step():
        choice = trainer.model.sample(0, next(steps))
        state[0], metrics = trainer.step(state[0], parts, choice)
        return state[0], metrics

    return step


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main)
