"""Images with boxes, masks, labels and scores drawn on them, by Pillow."""

import colorsys
import dataclasses
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from pycocotools import mask as coco_mask

from crnas_jax.evaluation.predict import Prediction

# Share of a mask's colour over the image.
_MASK_OPACITY = 0.4
# Turn of the colour circle from one class to the next: neighbours differ most.
_GOLDEN_TURN = 0.618034
_LONGEST_LABEL = 40
# Sides of an image, pixels, by which fonts and lines are sized.
_LINE_SHARE, _FONT_SHARE, _LEAST_FONT = 300, 32, 11


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is drawn on an image: detections, or annotated objects.

    Attributes:
      boxes: boxes in xyxy, pixels, [n, 4].
      labels: classes from 1, which choose the colours, [n].
      texts: what stands at each box, n strings.
      masks: bool [n, height, width]; None for none.
      is_truth: whether the objects are annotated; their frames are double lines.
    """

    boxes: np.ndarray
    labels: Sequence[int]
    texts: Sequence[str]
    masks: Sequence[np.ndarray] | None = None
    is_truth: bool = False


def draw(image: np.ndarray, objects: Objects, side: int | None = None) -> np.ndarray:
    """Return an image with objects drawn on it, the best last, on top.

    Args:
      image: uint8 [height, width, 3] RGB.
      objects: what is drawn, best first.
      side: longer side of the returned image in pixels; None for the image's own.
    """
    image = np.array(image)
    order = range(len(objects.boxes) - 1, -1, -1)
    for index in order if objects.masks is not None else ():
        mask, colour = objects.masks[index], np.array(colour_of(objects.labels[index]))
        image[mask] = (1 - _MASK_OPACITY) * image[mask] + _MASK_OPACITY * colour
    boxes, picture = np.asarray(objects.boxes, float), PIL.Image.fromarray(image)
    if side is not None:
        scale = side / max(picture.size)
        size = [max(round(length * scale), 1) for length in picture.size]
        picture, boxes = picture.resize(size, PIL.Image.Resampling.LANCZOS), boxes * scale
    canvas, longest = PIL.ImageDraw.Draw(picture), max(picture.size)
    line = max(round(longest / _LINE_SHARE), 1)
    font = PIL.ImageFont.load_default(max(longest / _FONT_SHARE, _LEAST_FONT))
    for index in order:
        colour = colour_of(objects.labels[index])
        for inset in (0, 2 * line) if objects.is_truth else (0,):
            box = boxes[index] + [inset, inset, -inset, -inset]
            canvas.rectangle(_ordered(box), outline=colour, width=line)
    for index in order:  # no frame hides a label
        _write(canvas, font, boxes[index], objects.texts[index], objects.labels[index])
    return np.asarray(picture)


def results_on(
    results: Sequence[dict],
    category_ids: Sequence[int],
    class_names: Sequence[str],
    is_truth: bool = False,
    mask_size: tuple[int, int] | None = None,
) -> Objects:
    """Return detections of one image in COCO's result format, or annotations, as `Objects`.

    Args:
      results: entries with `bbox`, `category_id` and, of detections, `score`; in any order.
      category_ids: category ids of the labels 1..C.
      class_names: names of the labels 1..C.
      is_truth: see `Objects`.
      mask_size: height and width of the image, for entries with a `segmentation` that is drawn;
        None to draw boxes alone.
    """
    label_of = {category: label for label, category in enumerate(category_ids, 1)}
    results = sorted(results, key=lambda result: -result.get("score", 0))
    labels = [label_of[result["category_id"]] for result in results]
    boxes = np.array([result["bbox"] for result in results], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    texts = [
        label_text(class_names[label - 1], result.get("score"))
        for label, result in zip(labels, results, strict=True)
    ]
    masks = None
    if mask_size is not None:
        masks = [_mask(result.get("segmentation"), *mask_size) for result in results]
    return Objects(boxes, labels, texts, masks, is_truth)


def prediction_on(prediction: Prediction, score: float = 0.0) -> Objects:
    """Return a prediction as `Objects`, without detections below a score."""
    chosen = [index for index, value in enumerate(prediction.scores) if value >= score]
    masks = None
    if prediction.mask_cells is not None:
        masks = [prediction.mask(index) for index in chosen]
    names, scores = prediction.class_names, prediction.scores
    texts = [label_text(names[index], float(scores[index])) for index in chosen]
    return Objects(prediction.boxes[chosen], prediction.labels[chosen], texts, masks)


def label_text(class_name: str, score: float | None = None) -> str:
    """Return what stands at a box."""
    text = class_name if len(class_name) <= _LONGEST_LABEL else f"{class_name[:_LONGEST_LABEL]}.."
    return text if score is None else f"{text} {score:.2f}"


def colour_of(label: int) -> tuple[int, int, int]:
    """Return the colour of a class, RGB."""
    colour = colorsys.hsv_to_rgb((label * _GOLDEN_TURN) % 1, 0.85, 0.95)
    return tuple(round(255 * part) for part in colour)


def beside(panels: Sequence[np.ndarray], gap: int = 6) -> np.ndarray:
    """Return images of one height beside each other, uint8 [height, width, 3]."""
    height = max(panel.shape[0] for panel in panels)
    line = np.full((height, gap, 3), 255, np.uint8)
    parts = []
    for panel in panels:
        room = np.full((height - panel.shape[0], panel.shape[1], 3), 255, np.uint8)
        parts += [np.concatenate([panel, room]), line]
    return np.concatenate(parts[:-1], axis=1)


def _mask(segmentation, height, width):
    """Return COCO's polygons or run-length code as a mask; an empty one where there are none."""
    if not segmentation:
        return np.zeros((height, width), bool)
    if isinstance(segmentation, list):
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return coco_mask.decode(code) > 0


def _ordered(box):
    """Return a box whose ends Pillow accepts."""
    x0, y0, x1, y1 = map(float, box)
    return [x0, y0, max(x0, x1), max(y0, y1)]


def _write(canvas, font, box, text, label):
    # Line ends would make Pillow's text box another one.
    text = " ".join(text.split()) or "?"
    x, y = float(box[0]), float(box[1])
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    height = bottom - top + 4
    y = y - height if y >= height else y
    x = max(min(x, canvas.im.size[0] - (right - left) - 4), 0)
    colour = colour_of(label)
    canvas.rectangle([x, y, x + right - left + 4, y + height], fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = (0, 0, 0) if brightness > 140 else (255, 255, 255)
    canvas.text((x + 2 - left, y + 2 - top), text, fill=ink, font=font)
