"""A detector of your own in the searcher: train a supernet, score its subnets, choose one.

python docs/examples/custom_detector.py --workdir=runs/custom     (some minutes on two CPU cores)

The detector is a small one-stage network in plain JAX: three strided convolutions, three blocks
that are searched (each nothing, a 3x3 convolution, or one with dilation 2), and for each cell of a
grid a class and a box. It uses no layer of crnas_jax; `TinyDetector` has what the protocol
`search.supernet.custom.Searchable` asks for.
"""

import argparse
import dataclasses
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax
from jax import lax

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from crnas_jax import cli  # noqa: E402
from crnas_jax.data.synthetic import SyntheticSource  # noqa: E402
from crnas_jax.data.transforms import DetectionRows, ImageSize  # noqa: E402
from crnas_jax.runtime import interruption  # noqa: E402
from crnas_jax.search.journal import Journal  # noqa: E402
from crnas_jax.search.scores import best  # noqa: E402
from crnas_jax.search.supernet.custom import CustomModel, affordable, code_to_choice  # noqa: E402
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer  # noqa: E402
from crnas_jax.search.supernet.scores import SupernetScores  # noqa: E402
from crnas_jax.training.job import TrainingJob, TrainOptions  # noqa: E402
from crnas_jax.training.loop import train  # noqa: E402
from crnas_jax.training.optimizer import OptimizerOptions  # noqa: E402

STRIDE, WIDTH, NUM_BLOCKS = 8, 32, 3
NOTHING, PLAIN, DILATED = range(3)


class Space:
    """All choices of an operation for every block."""

    def sample(self, rng):
        return tuple(int(operation) for operation in rng.integers(3, size=NUM_BLOCKS))

    def enumerate(self):
        return itertools.product(range(3), repeat=NUM_BLOCKS)


@dataclasses.dataclass(frozen=True)
class TinyDetector:
    """A one-stage detector with three searched blocks.

    Attributes:
      num_classes: number of object classes.
    """

    num_classes: int
    space = Space()

    def init(self, key):
        keys = iter(jax.random.split(key, 32))

        def conv(size, in_channels, out_channels):
            scale = (2 / (size * size * in_channels)) ** 0.5
            shape = (size, size, in_channels, out_channels)
            return {
                "kernel": scale * jax.random.normal(next(keys), shape),
                "bias": jnp.zeros(out_channels),
            }

        stem = [conv(3, channels, WIDTH) for channels in (3, WIDTH, WIDTH)]
        blocks = [[conv(3, WIDTH, WIDTH) for _ in (PLAIN, DILATED)] for _ in range(NUM_BLOCKS)]
        head = conv(1, WIDTH, self.num_classes + 1 + 4)
        return {"params": {"stem": stem, "blocks": blocks, "head": head}}

    def apply(self, variables, choice, batch):
        params, x = variables["params"], batch["image"].astype(jnp.float32) / 128 - 1
        for layer in params["stem"]:
            x = jax.nn.relu(_conv(x, layer, stride=2))
        for index, (plain, dilated) in enumerate(params["blocks"]):
            branches = [
                lambda x: x,
                lambda x, layer=plain: x + jax.nn.relu(_conv(x, layer)),
                lambda x, layer=dilated: x + jax.nn.relu(_conv(x, layer, dilation=2)),
            ]
            x = lax.switch(choice[index], branches, x)
        outputs = _conv(x, params["head"])
        rows, columns = outputs.shape[1:3]
        y, x = jnp.mgrid[:rows, :columns] * STRIDE + STRIDE / 2
        cells = jnp.stack([x, y], -1).reshape(1, -1, 2)
        outputs = outputs.reshape(len(outputs), cells.shape[1], -1)
        logits, sides = jnp.split(outputs, [self.num_classes + 1], -1)
        sides = STRIDE * jnp.exp(sides.clip(-4, 4))
        boxes = jnp.concatenate([cells - sides[..., :2], cells + sides[..., 2:]], -1)
        detections = _detections(lax.stop_gradient(logits), boxes, (rows, columns))
        return {**self._losses(logits, boxes, cells, batch), **detections}

    def cost(self, choice):
        """Count the blocks with a convolution."""
        return float(sum(operation != NOTHING for operation in choice))

    def _losses(self, logits, boxes, cells, batch):
        """Return the losses; a cell belongs to the object with its centre in the cell."""
        truth, valid = batch["boxes"], batch["valid"] & ~batch["crowd"]
        centre = (truth[..., :2] + truth[..., 2:])[:, None] / 2
        inside = (abs(cells[:, :, None] - centre) <= STRIDE / 2).all(-1) & valid[:, None]
        positive, owner = inside.any(-1), inside.argmax(-1)
        label = jnp.where(positive, jnp.take_along_axis(batch["labels"], owner, 1), 0)
        target = jnp.take_along_axis(truth, owner[..., None], 1)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        weight = batch["weight"][:, None] * jnp.where(positive, 4.0, 1.0)
        distance = abs(boxes - target).mean(-1) / STRIDE * positive * batch["weight"][:, None]
        num_positives = jnp.maximum((positive * batch["weight"][:, None]).sum(), 1)
        return {
            "loss_class": (entropy * weight).sum() / weight.sum(),
            "loss_box": distance.sum() / num_positives,
        }


def _conv(x, layer, stride=1, dilation=1):
    y = lax.conv_general_dilated(
        x,
        layer["kernel"],
        (stride, stride),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + layer["bias"][None, None, None]


def _detections(logits, boxes, grid, max_detections=20):
    """Return a detection for each peak: a cell with no better one among its neighbours."""
    scores = jax.nn.softmax(logits)[..., 1:]
    peaks = scores.max(-1).reshape(-1, *grid)
    around = lax.reduce_window(peaks, -jnp.inf, lax.max, (1, 3, 3), (1, 1, 1), "SAME")
    peaks = jnp.where(peaks == around, peaks, 0.0).reshape(len(peaks), -1)
    best_scores, index = lax.top_k(peaks, min(max_detections, peaks.shape[1]))
    labels = jnp.take_along_axis(scores.argmax(-1), index, 1) + 1
    best_boxes = jnp.take_along_axis(boxes, index[..., None], 1)
    valid = best_scores > 0.05
    return {"boxes": best_boxes, "scores": best_scores, "labels": labels, "valid": valid}


def search(workdir, limit=2.0, epochs=80.0, num_images=384):
    """Train the supernet and score every code that costs at most `limit`.

    Returns:
      The best code, its AP, and the number of codes that were scored.
    """
    train_source, val_source = (SyntheticSource(num_images, 64, seed) for seed in (0, 1))
    size, network = ImageSize(64, 64), TinyDetector(len(train_source.class_names))
    model = CustomModel(network)
    optimizer = OptimizerOptions(0.01, schedule="cosine", warmup_steps=10, clip_norm=1.0)
    options = TrainOptions(epochs, 8, optimizer, num_devices=1)
    rows = DetectionRows(size, max_objects=5)
    job = TrainingJob("supernet", model, train_source, rows, options)
    variables = train(job, workdir / "supernet")

    codes = affordable(network, limit)
    journal = Journal(workdir / "journal.jsonl", "custom example")
    scorer = SubnetScorer(
        model,
        variables,
        train_source,
        val_source,
        ScoreOptions(16, size, bn="running", num_devices=1),
        journal,
        workdir / "partial",
    )
    scores = SupernetScores(scorer, "custom", code_to_choice)
    ((code, score),) = best(codes, scores.score(codes), 1)
    return code, score, len(codes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search a detector of your own.")
    parser.add_argument("--workdir", required=True, help="folder; the same command goes on there")
    cli.prepare_process()
    interruption.listen()
    code, ap, num_codes = search(pathlib.Path(parser.parse_args().workdir))
    print(f"the best of {num_codes} codes: {code}, AP {ap:.3f}")
