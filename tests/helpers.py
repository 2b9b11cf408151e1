"""Values and comparisons that several tests share."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

from crnas_jax.models.heads.box_head import BoxHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.rcnn import DetectorOptions

ROOT = pathlib.Path(__file__).resolve().parents[1]
# For scripts that are launched: they compile as the tests do, but for one device.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": os.environ["SCRIPT_XLA_FLAGS"]}


def tiny_options(classes: int = 3) -> DetectorOptions:
    """Neck and heads small enough to compile in seconds."""
    rpn = RPNOptions(
        (8.0, 16.0, 32.0, 64.0, 128.0), samples=32, pre_nms=(60, 40), post_nms=(40, 20)
    )
    box = BoxHeadOptions(
        head_channels=32, samples=16, canonical_size=56.0, nms_candidates=40, detections=10
    )
    return DetectorOptions(classes, 16, rpn, box)


def tiny_batch(number: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> dict:
    """A device batch with two objects an image, the second image's first one a crowd."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 24, (number, 2, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 36, (number, 2, 2))], -1)
    crowd = np.zeros((number, 2), bool)
    crowd[1:2, 0] = True
    return {
        "image": rng.integers(0, 255, (number, height, width, 3)).astype(np.uint8),
        "image_size": np.full((number, 2), (height, width - 4), np.int32),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(1, 4, (number, 2)).astype(np.int32),
        "valid": np.ones((number, 2), bool),
        "crowd": crowd,
        "weight": np.ones(number, np.float32),
        "image_key": np.arange(number, dtype=np.uint32),
    }


def randomised(variables, seed: int = 0, scale: float = 0.1):
    """Variables with non-trivial biases and statistics."""
    rng = np.random.default_rng(seed)

    def noise(leaf):
        return leaf + scale * rng.standard_normal(leaf.shape).astype(leaf.dtype)

    return {
        "params": jax.tree.map(noise, variables["params"]),
        "batch_stats": jax.tree.map(lambda leaf: abs(noise(leaf)) + 0.5, variables["batch_stats"]),
    }


def run_commands(commands: list[list[str]]) -> list[dict]:
    """Outcomes {"status", "stdout", "stderr"} of scripts with arguments, on one device."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "forked.py")],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    return json.loads(run.stdout)


def greatest_difference(tree, other) -> float:
    """Largest absolute difference over all leaves; the trees must have one form."""
    return max(
        float(abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(*map(jax.tree.leaves, _same_form(tree, other)), strict=True)
    )


def _same_form(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    return tree, other


BATCHES, IMAGES = 16, 10


class Noisy:
    """A `Search` whose scores are means over images of a code's worth and noise common to all."""

    def __init__(self, seed=0, noise=0.3, batches=BATCHES, empty=0):
        self.seed, self.noise, self.passes = seed, noise, {}
        self.cleared = False
        self.batches, self.empty = batches, empty

    def worth(self, code):
        return -0.02 * sum((a - b) ** 2 for a, b in zip(code, (2, 3, 6, 5), strict=False))

    def values(self, code, batches):
        rng = np.random.default_rng([self.seed, 1])
        common = rng.normal(0, 1.0, self.batches * IMAGES)
        own = np.random.default_rng([self.seed, 2, *code])
        own = own.normal(0, self.noise, self.batches * IMAGES)
        return (self.worth(code) + common + 0.1 * own)[: IMAGES * batches]

    def score(self, codes, batches=None, keep=False):
        batches = batches or self.batches
        assert batches > self.empty
        for code in codes:
            self.passes[code] = max(self.passes.get(code, 0), batches)
        return [float(self.values(code, batches).mean()) for code in codes]

    def draws(self, codes, batches):
        index = np.random.default_rng(0).integers(IMAGES * batches, size=(200, IMAGES * batches))
        return np.stack([self.values(code, batches)[index].mean(1) for code in codes])

    def images(self, batches):
        return IMAGES * batches

    def objects(self, batches):
        return max(batches - self.empty, 0)

    def clear(self):
        self.cleared = True
