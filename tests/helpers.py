"""Values and comparisons that several tests share."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted, StemBlock
from crnas_jax.models.heads.box_head import BoxHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.spaces.operations import OperationSpace
from crnas_jax.spaces.stages import StageSpace

# Kills of each campaign; a whole one, of `make campaigns`, has twenty and more.
KILLS = int(os.environ.get("CAMPAIGN_KILLS", "3"))
WHOLE = KILLS >= 20
ROOT = pathlib.Path(__file__).resolve().parents[1]
# For scripts that are launched: they compile as the tests do, but for one device.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": os.environ["SCRIPT_XLA_FLAGS"]}


def campaign_rng() -> np.random.Generator:
    """Return the generator of a campaign's moments."""
    return np.random.default_rng(int(os.environ.get("CAMPAIGN_SEED", "0")))


class Pair:
    """Two processes as two objects of this one, which exchange texts: a `runtime.team.Team`."""

    def __init__(self, index, texts):
        self.index, self.count, self._texts = index, 2, texts

    def broadcast(self, text):
        if self.index == 0:
            self._texts.append(text)
        return self._texts[-1]

    def gather(self, text):
        return [text, text]

    def stop_requested(self):
        return False


def tiny_spinenet(family: str = "spinenet", num_levels: int = 5) -> ScalePermuted:
    """Return a scale-permuted network of as many blocks as it has outputs, of p3 and so on."""
    mobile = family == "spinenet_mobile"
    rows = ((3, (0, 1)), (5, (1, 2)), (4, (0, 3)), (6, (3, 4)), (7, (4, 5)))[:num_levels]
    kinds = ["mbconv"] * 5 if mobile else ["bottleneck", "residual"] * 3
    blocks = tuple(
        PermutedBlock(level, kind, parents, is_output=True)
        for (level, parents), kind in zip(rows, kinds, strict=False)
    )
    stem = (StemBlock(1 if mobile else 2), StemBlock(2))
    scale = 1 / 4 if mobile else 1 / 16
    return ScalePermuted(family, stem, blocks, width_scale=scale, endpoint_channels=16)


def four_blocks() -> ScalePermuted:
    """Return a scale-permuted network of two intermediate blocks and the outputs p3 and p4."""
    rows = ((2, (0, 1), False), (3, (1, 2), False), (3, (2, 3), True), (4, (3, 4), True))
    blocks = tuple(
        PermutedBlock(level, "bottleneck", parents, is_output) for level, parents, is_output in rows
    )
    sizes = {"width_scale": 1 / 16, "alpha": 0.25, "endpoint_channels": 16}
    return ScalePermuted("spinenet", (StemBlock(2), StemBlock(2)), blocks, **sizes)


def tiny_options(num_classes: int = 3) -> DetectorOptions:
    """Return options of a neck and heads that compile in seconds."""
    rpn = RPNOptions(
        (8.0, 16.0, 32.0, 64.0, 128.0), num_samples=32, pre_nms=(60, 40), post_nms=(40, 20)
    )
    box = BoxHeadOptions(
        head_channels=32,
        num_samples=16,
        canonical_size=56.0,
        nms_candidates=40,
        max_detections=10,
    )
    return DetectorOptions(num_classes, 16, rpn, box)


def tiny_batch(num_images: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> dict:
    """Return a device batch with two objects an image; the second image's first is a crowd."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 24, (num_images, 2, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 36, (num_images, 2, 2))], -1)
    crowd = np.zeros((num_images, 2), bool)
    crowd[1:2, 0] = True
    return {
        "image": rng.integers(0, 255, (num_images, height, width, 3)).astype(np.uint8),
        "image_size": np.full((num_images, 2), (height, width - 4), np.int32),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(1, 4, (num_images, 2)).astype(np.int32),
        "valid": np.ones((num_images, 2), bool),
        "crowd": crowd,
        "weight": np.ones(num_images, np.float32),
        "image_key": np.arange(num_images, dtype=np.uint32),
    }


def fixed_proposals(num_images: int = 8) -> dict:
    """Return a batch that brings its proposals, so that rounding cannot change which are chosen."""
    batch = {**tiny_batch(num_images), "image_id": np.arange(num_images)}
    batch["label"] = np.arange(num_images, dtype=np.int32) % 3  # for classifiers
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 40, (num_images, 24, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 24, (num_images, 24, 2))], -1)
    boxes[:, :8] = np.repeat(batch["boxes"], 4, 1) + rng.uniform(-2, 2, (num_images, 8, 4))
    batch["proposals"] = boxes.astype(np.float32)
    batch["proposals_valid"] = np.ones((num_images, 24), bool)
    return batch


def fresh_variables(model, seed: int = 0):
    """Draw variables of a model in NumPy: `init` would take seconds to compile in each test."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        layer, kind = (None, *(part.key for part in path))[-2:]
        if kind == "kernel":
            fan_in = math.prod(leaf.shape[-4:-1])
            # Predictors start small, or all scores would be near 0 or 1.
            scale = 0.01 if layer in ("class", "box", "objectness") else math.sqrt(2 / fan_in)
            values = scale * rng.standard_normal(leaf.shape)
        else:
            values = np.full(leaf.shape, {"scale": 1, "var": 1, "bias": 0, "mean": 0}[kind])
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.shapes)


def randomised(variables, seed: int = 0, scale: float = 0.1):
    """Return variables with non-trivial biases and statistics."""
    rng = np.random.default_rng(seed)

    def noise(leaf):
        return leaf + scale * rng.standard_normal(leaf.shape).astype(leaf.dtype)

    return {
        "params": jax.tree.map(noise, variables["params"]),
        "batch_stats": jax.tree.map(lambda leaf: abs(noise(leaf)) + 0.5, variables["batch_stats"]),
    }


def run_commands(commands: list[list[str]]) -> list[dict]:
    """Run scripts with arguments on one device; return {"status", "stdout", "stderr"} of each."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "forked.py")],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    return json.loads(run.stdout)


def largest_difference(tree, other) -> float:
    """Return the largest absolute difference over all leaves of two trees of one structure."""
    return max(
        float(abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(*map(jax.tree.leaves, _same_structure(tree, other)), strict=True)
    )


def _same_structure(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    return tree, other


BATCHES, IMAGES = 16, 10


class Noisy:
    """`PartialScores` made up: means over images of a code's worth and noise common to all codes.

    Attributes:
      passes: by code, the most mini-batches that it was scored on.
      cleared: whether `clear` was called.
    """

    def __init__(self, seed=0, noise=0.3, num_batches=BATCHES, num_empty=0):
        """Args: seed; noise of a single code; mini-batches; how many first ones have no object."""
        self.seed, self.noise, self.passes = seed, noise, {}
        self.cleared = False
        self.num_batches, self.num_empty = num_batches, num_empty

    def worth(self, code):
        return -0.02 * sum((a - b) ** 2 for a, b in zip(code, (2, 3, 6, 5), strict=False))

    def values(self, code, num_batches):
        rng = np.random.default_rng([self.seed, 1])
        common = rng.normal(0, 1.0, self.num_batches * IMAGES)
        noise = np.random.default_rng([self.seed, 2, *code])
        noise = noise.normal(0, self.noise, self.num_batches * IMAGES)
        return (self.worth(code) + common + 0.1 * noise)[: IMAGES * num_batches]

    def score(self, codes):
        return self.score_on(codes, self.num_batches)

    def score_on(self, codes, num_batches):
        assert num_batches > self.num_empty
        for code in codes:
            self.passes[code] = max(self.passes.get(code, 0), num_batches)
        return [float(self.values(code, num_batches).mean()) for code in codes]

    def draws(self, codes, num_batches):
        num_images = IMAGES * num_batches
        index = np.random.default_rng(0).integers(num_images, size=(200, num_images))
        return np.stack([self.values(code, num_batches)[index].mean(1) for code in codes])

    def num_images(self, num_batches):
        return IMAGES * num_batches

    def num_objects(self, num_batches):
        return max(num_batches - self.num_empty, 0)

    def effort(self):
        return {
            "evaluated": len(self.passes),
            "image_passes": IMAGES * sum(self.passes.values()),
        }

    def clear(self):
        self.cleared = True


SAMPLED_SPACES = ([StageSpace().within(8), StageSpace().within(16)], [OperationSpace((2, 2))])


def check_sampled_codes(strategy, spaces):
    """Check that a strategy ranks 40 codes of each space, all different, the same for a seed."""
    results = [strategy(spaces, Noisy(), seed, evaluations=40) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0][-1] != results[2][-1]
    for space, ranked in zip(spaces, results[0], strict=True):
        codes = [code for code, _ in ranked]
        assert len(set(codes)) == len(codes) == min(40, space.count())
        assert set(codes) <= set(space.enumerate())
        scores = [score for _, score in ranked]
        assert scores == sorted(scores, reverse=True)


class Table:
    """`Scores` made up for any code; few levels make many ties.

    Attributes:
      calls: codes of each call of `score`.
    """

    def __init__(self, seed, levels):
        self.seed, self.levels, self.calls = seed, levels, []

    def score(self, codes):
        self.calls.append(list(codes))
        return [self.value(code) for code in codes]

    def effort(self):
        return {"evaluated": sum(map(len, self.calls)), "image_passes": 0}

    def value(self, code):
        rng = np.random.default_rng([self.seed, *code, len(code)])
        return float(rng.integers(self.levels)) / self.levels


def change_a_byte(folder):
    """Flip a bit in the middle of a folder's largest file, as a bad disk does."""
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
