"""How long a network takes on the device at hand, measured."""

import dataclasses
import functools
import pathlib
import statistics
import time

import jax
import numpy as np

from crnas_jax.arch.staged import Arch
from crnas_jax.models.build import Detector
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.runtime.workdir import read_json, write_json
from crnas_jax.search.supernet.evaluator import SubnetEvaluator

_REPEATS = 9


@dataclasses.dataclass(frozen=True)
class LatencyMeter:
    """Milliseconds of one image through networks of a space, from image to detections.

    One compiled program runs every network: a supernet of the widths that are trained in the end,
    whose blocks are run one after the other as the network itself runs them
    (`benchmarks/evaluator.py` holds the two against each other).

    Attributes:
      detector: such a supernet's; which weights it shares does not matter.
      canvas: (height, width) in pixels.
      file: where measurements are kept, by device.
    """

    detector: Detector
    canvas: tuple[int, int]
    file: pathlib.Path

    def milliseconds(self, arch: Arch) -> float:
        """Median of several runs after one to warm up; what was measured before is not again."""
        key = f"{jax.devices()[0].device_kind}: {arch.to_json()}"
        if key not in self._kept:
            spec = self.detector.spec
            operations = [spec.dilations.index(dilation) for dilation in arch.dilations]
            self._kept[key] = self._measure(spec.choice(arch.depths, operations))
            write_json(self.file, self._kept)
        return self._kept[key]

    @functools.cached_property
    def _kept(self):
        return read_json(self.file) if self.file.exists() else {}

    def _measure(self, choice):
        evaluator, variables, batch = self._program
        seconds = []
        for _ in range(1 + _REPEATS):
            began = time.perf_counter()
            found = evaluator.detect_in_chunks(variables, batch, [choice], bn="running")
            jax.block_until_ready(list(found))
            seconds.append(time.perf_counter() - began)
        return round(1000 * statistics.median(seconds[1:]), 4)

    @functools.cached_property
    def _program(self):
        mesh = make_mesh(1, 1)
        variables = jax.jit(self.detector.init)(jax.random.key(0))
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 255, (1, *self.canvas, 3), np.uint8),
            "image_size": np.array([self.canvas], np.int32),
            "weight": np.ones(1, np.float32),
            "image_id": np.zeros(1, np.int64),
        }
        return SubnetEvaluator(self.detector, mesh, chunk=1), variables, put_batch(mesh, batch)
