"""A detector of one's own on a backbone from an export: anchor-free, with its own training loop.

    crnas-jax export --workdir=runs/mine --output=exports/mine --part=backbone
    python docs/examples/downstream_detector.py --export=exports/mine --data=DATA
    python docs/examples/downstream_detector.py --export=exports/mine --data=DATA --package=none

It predicts a heatmap of object centres for each class, and sizes and offsets of the boxes there
("Objects as Points", arXiv 1904.07850). DATA has `images/`, `train.json` and `test.json` in COCO's
format. With `--package=none` crnas_jax is not imported: the backbone is the export's `backbone.py`,
which needs jax and flax alone, and its weights come from Orbax; the example itself also needs optax
(flax brings both) and Pillow. `--scratch` takes the architecture without the weights.
"""

import argparse
import functools
import json
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

STRIDE, CHANNELS, MAX_OBJECTS = 4, 64, 64
HEIGHT, WIDTH = 256, 320  # the canvas; multiples of 32, as arch.json says


class Detector(nn.Module):
    """Features of four strides, added up at stride 4, and three heads on them.

    Attributes:
      backbone: module of images to (c2, c3, c4, c5).
      num_classes: number of classes.
    """

    backbone: nn.Module
    num_classes: int

    @nn.compact
    def __call__(self, images, train: bool):
        """Return logits of centres, and sizes and offsets in cells, each [batch, rows, columns]."""
        *finer, x = self.backbone(images, train)
        x = nn.Conv(CHANNELS, (1, 1))(x)
        for feature in reversed(finer):
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2) + nn.Conv(CHANNELS, (1, 1))(feature)
        x = nn.relu(nn.GroupNorm(8)(nn.Conv(CHANNELS, (3, 3))(x)))
        # At first every cell is empty with a probability of 0.9.
        logits = nn.Conv(self.num_classes, (1, 1), bias_init=nn.initializers.constant(-2.2))
        return logits(x), jnp.exp(nn.Conv(2, (1, 1))(x)), nn.Conv(2, (1, 1))(x)


def load(export: pathlib.Path, package: str) -> tuple[nn.Module, Any]:
    """Return the backbone's module and variables, with crnas_jax or without it."""
    if package == "crnas_jax":
        import crnas_jax

        return crnas_jax.load_backbone(export)
    from orbax.checkpoint import v1 as ocp

    sys.path.insert(0, str(export))
    from backbone import Backbone

    tree = ocp.load((export / "variables").absolute())
    variables = {name: tree[name]["backbone"] for name in ("params", "batch_stats")}
    return Backbone.from_json((export / "arch.json").read_text()), variables


def read(data: pathlib.Path, split: str, description: dict) -> dict[str, np.ndarray]:
    """Return all images of a split, normalised on the canvas, and their objects.

    `boxes` are centre and size in cells, [images, MAX_OBJECTS, 4]; `labels` count from 0, with -1
    where there is no object; `scale` is the resized over the original size.
    """
    content = json.loads((data / f"{split}.json").read_text())
    category_ids = sorted(category["id"] for category in content["categories"])
    label_of = {category: label for label, category in enumerate(category_ids)}
    multiple = description["input"]["multiple"]
    if HEIGHT % multiple or WIDTH % multiple:
        raise SystemExit(f"this canvas, {HEIGHT} x {WIDTH}, is no multiple of {multiple}")
    mean, std = (np.array(description["input"][name], np.float32) for name in ("mean", "std"))
    rows = {name: [] for name in ("images", "boxes", "labels", "scale", "image_id")}
    for entry in sorted(content["images"], key=lambda image: image["id"]):
        image = Image.open(data / "images" / entry["file_name"]).convert("RGB")
        scale = min(HEIGHT / image.height, WIDTH / image.width)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        canvas = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        canvas[: image.height, : image.width] = (np.asarray(image) / 255 - mean) / std
        objects = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
        boxes, labels = np.ones((MAX_OBJECTS, 4), np.float32), np.full(MAX_OBJECTS, -1)
        for row, annotation in enumerate(objects[:MAX_OBJECTS]):
            x, y, w, h = np.array(annotation["bbox"]) * scale / STRIDE
            boxes[row] = x + w / 2, y + h / 2, w, h
            labels[row] = label_of[annotation["category_id"]]
        values = (canvas, boxes, labels, scale, entry["id"])
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return {name: np.array(values) for name, values in rows.items()}


def loss(outputs, boxes, labels):
    """Return the focal loss of centres and the L1 loss of sizes and offsets, over objects."""
    logits, sizes, offsets = outputs
    batch, rows, columns, num_classes = logits.shape
    is_object = labels >= 0
    x, y, w, h = jnp.moveaxis(boxes, -1, 0)
    column = jnp.clip(x.astype(int), 0, columns - 1)
    row = jnp.clip(y.astype(int), 0, rows - 1)
    # A Gaussian around each centre: near misses weigh less.
    deviation = jnp.sqrt(w * h)[..., None, None] / 12 + 0.3
    squares = (jnp.arange(rows)[:, None] - row[..., None, None]) ** 2
    squares = squares + (jnp.arange(columns)[None] - column[..., None, None]) ** 2
    gaussians = jnp.exp(-squares / (2 * deviation**2))
    one_hot = jax.nn.one_hot(labels, num_classes)  # all 0 where there is no object
    target = (gaussians[..., None] * one_hot[:, :, None, None]).max(1)
    probability = jax.nn.sigmoid(logits)
    positive = (1 - probability) ** 2 * jax.nn.log_sigmoid(logits)
    negative = (1 - target) ** 4 * probability**2 * jax.nn.log_sigmoid(-logits)
    num_objects = jnp.maximum(is_object.sum(), 1)
    centres = -jnp.where(target == 1, positive, negative).sum() / num_objects
    image = jnp.arange(batch)[:, None]
    size_error = abs(jnp.log(sizes[image, row, column]) - jnp.log(jnp.stack([w, h], -1))).sum(-1)
    offset = jnp.stack([x - column, y - row], -1)
    offset_error = abs(offsets[image, row, column] - offset).sum(-1)
    return centres + (jnp.where(is_object, size_error + offset_error, 0).sum()) / num_objects


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def step(model, optimizer, variables, optimizer_state, batch):
    """Take a training step; return variables, state of the optimizer, and the loss."""

    def compute(params):
        outputs, moved = model.apply(
            {**variables, "params": params}, batch["images"], True, mutable=["batch_stats"]
        )
        return loss(outputs, batch["boxes"], batch["labels"]), moved

    (value, moved), gradient = jax.value_and_grad(compute, has_aux=True)(variables["params"])
    updates, optimizer_state = optimizer.update(gradient, optimizer_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, **moved}, optimizer_state, value


@functools.partial(jax.jit, static_argnums=0)
def detect(model, variables, images):
    """Return the 100 highest centres of each image: boxes x, y, w, h in pixels, labels, scores."""
    logits, sizes, offsets = model.apply(variables, images, False)
    scores = jax.nn.sigmoid(logits)
    is_peak = scores == nn.max_pool(scores, (3, 3), padding="SAME")
    batch, _, columns, num_classes = scores.shape
    scores, index = jax.lax.top_k(jnp.where(is_peak, scores, 0).reshape(batch, -1), 100)
    cell, label = index // num_classes, index % num_classes
    image, row, column = jnp.arange(batch)[:, None], cell // columns, cell % columns
    size = sizes[image, row, column]
    centre = jnp.stack([column, row], -1) + offsets[image, row, column]
    return STRIDE * jnp.concatenate([centre - size / 2, size], -1), label, scores


def train(export: str, data: str, package="crnas_jax", scratch=False, seed=0, steps=800, batch=8):
    """Train on `train`; return the detections on `test` and the objects there, for `ap50`."""
    export, data = pathlib.Path(export), pathlib.Path(data)
    backbone, weights = load(export, package)
    description = json.loads((export / "arch.json").read_text())
    images = {split: read(data, split, description) for split in ("train", "test")}
    num_classes = 1 + max(int(split["labels"].max()) for split in images.values())
    model = Detector(backbone, num_classes)
    variables = model.init(jax.random.key(seed), images["train"]["images"][:1], False)
    if not scratch:
        for name, tree in weights.items():
            variables[name]["backbone"] = jax.tree.map(jnp.asarray, tree)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(50, steps // 4), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(schedule))
    state, rng = optimizer.init(variables["params"]), np.random.default_rng(seed)
    for number in range(steps):
        rows = rng.choice(len(images["train"]["images"]), batch, replace=False)
        part = {name: images["train"][name][rows] for name in ("images", "boxes", "labels")}
        variables, state, value = step(model, optimizer, variables, state, part)
        if number % 50 == 0 or number == steps - 1:
            print(f"step {number}/{steps} loss {float(value):.3f}", flush=True)
    outputs = [
        jax.device_get(detect(model, variables, images["test"]["images"][start : start + batch]))
        for start in range(0, len(images["test"]["images"]), batch)
    ]
    boxes, labels, scores = (np.concatenate(part) for part in zip(*outputs, strict=True))
    return {"boxes": boxes, "labels": labels, "scores": scores}, images["test"]


def ap50(detections: dict, truth: dict, rows=None) -> float:
    """Return the mean over classes of AP at an IoU of 0.5 (101 recalls, as COCO).

    Args:
      detections: what `train` returned first.
      truth: what it returned second.
      rows: images to count, perhaps more than once; all when None.
    """
    rows = range(len(truth["labels"])) if rows is None else rows
    values = []
    for label in range(1 + int(truth["labels"].max())):
        scores, hits, num_objects = [], [], 0
        for row in rows:
            chosen = detections["labels"][row] == label
            centre, size = np.split(truth["boxes"][row][truth["labels"][row] == label], 2, 1)
            objects = STRIDE * np.concatenate([centre - size / 2, size], 1)
            order = np.argsort(-detections["scores"][row][chosen], kind="stable")
            scores.append(detections["scores"][row][chosen][order])
            hits.append(_hits(detections["boxes"][row][chosen][order], objects))
            num_objects += len(objects)
        if num_objects:
            order = np.argsort(-np.concatenate(scores), kind="stable")
            true = np.cumsum(np.concatenate(hits)[order])
            precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
            place = np.searchsorted(true / num_objects, np.linspace(0, 1, 101))
            values.append(np.append(precision, 0)[np.minimum(place, len(precision))].mean())
    return float(np.mean(values))


def _hits(boxes, objects):
    """Tell which boxes, best first, take an object of their own; boxes are x, y, w, h."""
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], objects[:, :2] + objects[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    iou = shared / (np.prod(boxes[:, None, 2:], -1) + np.prod(objects[:, 2:], -1) - shared)
    hits = np.zeros(len(boxes), bool)
    for row in range(len(boxes) if len(objects) else 0):
        best = int(iou[row].argmax())
        hits[row] = iou[row, best] >= 0.5
        if hits[row]:
            iou[:, best] = 0
    return hits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--export", required=True, help="folder of an export")
    parser.add_argument("--data", required=True, help="folder with images/ and json files")
    parser.add_argument("--package", choices=("crnas_jax", "none"), default="crnas_jax")
    parser.add_argument("--scratch", action="store_true", help="leave the weights out")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order")
    parser.add_argument("--steps", type=int, default=800, help="training steps of 8 images")
    flags = parser.parse_args()
    for file in (
        f"{flags.export}/arch.json",
        f"{flags.data}/train.json",
        f"{flags.data}/test.json",
    ):
        if not pathlib.Path(file).is_file():
            parser.error(f"there is no {file}")
    print(f"AP50 on test: {ap50(*train(**vars(flags))):.3f}")
