"""How long a network takes on the device at hand, measured."""

import dataclasses
import functools
import pathlib
import statistics
import time

import jax
import numpy as np

from crnas_jax.arch import Architecture
from crnas_jax.models.build import Detector
from crnas_jax.parallel.mesh import jit_once, local_mesh, put_batch
from crnas_jax.runtime import team
from crnas_jax.runtime.files import digest, read_json, write_json
from crnas_jax.search.supernet.evaluator import SubnetEvaluator

_REPEATS = 9


@dataclasses.dataclass(frozen=True)
class LatencyMeter:
    """Measure milliseconds for one image through networks of a space, from image to detections.

    One compiled program runs every network: a supernet at the widths that are trained in the end,
    with blocks that run one after the other as the network itself runs them
    (`benchmarks/evaluator.py` compares the two).

    Attributes:
      detector: such a supernet's detector; which weights it shares does not matter.
      canvas: (height, width) in pixels.
      file: file that holds the measurements, by device, detector and canvas.
    """

    detector: Detector
    canvas: tuple[int, int]
    file: pathlib.Path

    def milliseconds(self, arch: Architecture) -> float:
        """Return the median of several runs after a warm-up; a network is measured once.

        Of several hosts each measures on its first device, at the same time; the primary's counts.
        """
        around = digest(repr(self.detector.options), self.detector.precision, repr(self.canvas))
        key = f"{jax.devices()[0].device_kind}, {around}: {arch.to_json()}"
        milliseconds = team.decide(self._stored, key)
        if milliseconds is None:
            own = self._measure(self.detector.spec.choice_of(arch))
            milliseconds = team.decide(self._store, key, own)
        return milliseconds

    def _stored(self, key):
        return self._measured.get(key)

    def _store(self, key, milliseconds):
        self._measured[key] = milliseconds
        write_json(self.file, self._measured)
        return milliseconds

    @functools.cached_property
    def _measured(self):
        return read_json(self.file) if self.file.exists() else {}

    def _measure(self, choice):
        evaluator, variables, batch = self._program
        seconds = []
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            detections = evaluator.detect_in_chunks(variables, batch, [choice], bn="running")
            jax.block_until_ready(list(detections))
            seconds.append(time.perf_counter() - start)
        return round(1000 * statistics.median(seconds[1:]), 4)

    @functools.cached_property
    def _program(self):
        print("latency: compiling, then measuring each network once", flush=True)
        mesh = local_mesh()
        variables = jit_once(self.detector.init)(jax.random.key(0))
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 255, (1, *self.canvas, 3), np.uint8),
            "image_size": np.array([self.canvas], np.int32),
            "weight": np.ones(1, np.float32),
            "image_id": np.zeros(1, np.int64),
        }
        evaluator = SubnetEvaluator(self.detector, mesh, max_subnets_per_call=1)
        return evaluator, variables, put_batch(mesh, batch)
