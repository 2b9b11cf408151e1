"""A detector of your own in our searcher: a supernet is trained, its subnets scored, one is chosen.

python docs/examples/foreign_detector.py --workdir=runs/foreign     (two minutes on two CPU cores)

The detector is a small one-stage network in plain JAX: three strided convolutions, three blocks
that are searched (each nothing, 3x3, or 3x3 with dilation 2), and for each cell of a grid a class
and a box. Nothing in it is ours; what `Searchable` asks for stands in `TinyDetector`.
"""

import dataclasses
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax
from absl import flags
from jax import lax

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from crnas_jax import cli  # noqa: E402
from crnas_jax.data.synthetic import SyntheticSource  # noqa: E402
from crnas_jax.data.transforms import DetectionRows, ImageSize  # noqa: E402
from crnas_jax.search.journal import Journal  # noqa: E402
from crnas_jax.search.scores import Search, best  # noqa: E402
from crnas_jax.search.supernet.custom import Foreign, affordable, choice_of  # noqa: E402
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer  # noqa: E402
from crnas_jax.training.loop import TrainOptions, train  # noqa: E402
from crnas_jax.training.optimizer import OptimizerOptions  # noqa: E402

STRIDE, WIDTH, BLOCKS = 8, 32, 3
NOTHING, PLAIN, DILATED = range(3)


class Space:
    """An operation for every block."""

    def sample(self, rng, budget=None):
        del budget
        return tuple(int(operation) for operation in rng.integers(3, size=BLOCKS))

    def enumerate(self, budget=None):
        del budget
        return itertools.product(range(3), repeat=BLOCKS)


@dataclasses.dataclass(frozen=True)
class TinyDetector:
    """Attributes: `classes`, of objects."""

    classes: int
    space = Space()

    def init(self, key):
        keys = iter(jax.random.split(key, 32))

        def conv(size, channels, features):
            scale = (2 / (size * size * channels)) ** 0.5
            return {
                "kernel": scale * jax.random.normal(next(keys), (size, size, channels, features)),
                "bias": jnp.zeros(features),
            }

        stem = [conv(3, channels, WIDTH) for channels in (3, WIDTH, WIDTH)]
        blocks = [[conv(3, WIDTH, WIDTH) for _ in (PLAIN, DILATED)] for _ in range(BLOCKS)]
        head = conv(1, WIDTH, self.classes + 1 + 4)
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
        out = _conv(x, params["head"])
        rows, columns = out.shape[1:3]
        y, x = jnp.mgrid[:rows, :columns] * STRIDE + STRIDE / 2
        cells = jnp.stack([x, y], -1).reshape(-1, 2)
        out = out.reshape(len(out), len(cells), -1)
        logits, sides = jnp.split(out, [self.classes + 1], -1)
        sides = STRIDE * jnp.exp(sides.clip(-4, 4))
        boxes = jnp.concatenate([cells - sides[..., :2], cells + sides[..., 2:]], -1)
        found = _detections(lax.stop_gradient(logits), boxes, (rows, columns))
        return {**self._losses(logits, boxes, cells, batch), **found}

    def cost(self, choice):
        """Blocks with a convolution."""
        return float(sum(operation != NOTHING for operation in choice))

    def _losses(self, logits, boxes, cells, batch):
        """A cell belongs to the object whose centre lies in it."""
        truth, valid = batch["boxes"], batch["valid"] & ~batch["crowd"]
        centre = (truth[..., :2] + truth[..., 2:])[:, None] / 2
        inside = (abs(cells[None, :, None] - centre) <= STRIDE / 2).all(-1) & valid[:, None]
        positive, owner = inside.any(-1), inside.argmax(-1)
        label = jnp.where(positive, jnp.take_along_axis(batch["labels"], owner, 1), 0)
        own = jnp.take_along_axis(truth, owner[..., None], 1)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        weight = batch["weight"][:, None] * jnp.where(positive, 4.0, 1.0)
        distance = abs(boxes - own).mean(-1) / STRIDE * positive * batch["weight"][:, None]
        number = jnp.maximum((positive * batch["weight"][:, None]).sum(), 1)
        return {
            "loss_class": (entropy * weight).sum() / weight.sum(),
            "loss_box": distance.sum() / number,
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
    return y + layer["bias"]


def _detections(logits, boxes, grid, number=20):
    """The peaks: cells that no neighbour outdoes."""
    scores = jax.nn.softmax(logits)[..., 1:]
    best = scores.max(-1).reshape(-1, *grid)
    around = lax.reduce_window(best, -jnp.inf, lax.max, (1, 3, 3), (1, 1, 1), "SAME")
    best = jnp.where(best == around, best, 0.0).reshape(len(best), -1)
    best_score, index = lax.top_k(best, min(number, best.shape[1]))
    labels = jnp.take_along_axis(scores.argmax(-1), index, 1) + 1
    chosen = jnp.take_along_axis(boxes, index[..., None], 1)
    return {"boxes": chosen, "scores": best_score, "labels": labels, "valid": best_score > 0.05}


def search(workdir, limit=2.0, epochs=80.0, images=384):
    """The best code of cost `limit` or less, its AP, and how many were scored."""
    splits = {name: SyntheticSource(images, 64, seed) for seed, name in enumerate(("train", "val"))}
    size, network = ImageSize(64, 64), TinyDetector(len(splits["train"].class_names))
    model = Foreign(network)
    optimizer = OptimizerOptions(0.01, schedule="cosine", warmup_steps=10, clip=1.0)
    options = TrainOptions(epochs, 8, optimizer, devices=1)
    rows = DetectionRows(size, max_objects=5)
    variables = train(model, splits["train"], rows, options, workdir / "supernet", "supernet")

    codes = affordable(network, limit)
    journal = Journal(workdir / "journal.jsonl", "foreign example")
    scoring = ScoreOptions(16, size, bn="running", devices=1)
    scorer = SubnetScorer(model, variables, *splits.values(), scoring, journal, workdir / "partial")
    ((code, score),) = best(codes, Search(scorer, "foreign", choice_of).score(codes), 1)
    return code, score, len(codes)


def main():
    found, ap, number = search(pathlib.Path(flags.FLAGS.workdir))
    print(f"the best of {number} codes: {found}, AP {ap:.3f}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the run; the same command on it resumes.")
    cli.run(main, ["workdir"])
