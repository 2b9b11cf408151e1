"""Convert instance masks between COCO's polygons and run-length codes and crops of fixed size."""

import cv2
import numpy as np
from pycocotools import mask as coco_mask

# Polygons in pycocotools need three points, of two coordinates each.
_MIN_COORDINATES = 6


def validated(segmentation, height: int, width: int):
    """Validate the segmentation of an annotation.

    pycocotools checks nothing itself; what passes this function neither crashes it nor is misread.
    COCO contains a few polygons of two points: they are removed if the object has valid polygons.
    Polygons that lie outside the image altogether are no mask.

    Args:
      segmentation: value of an annotation's `segmentation` field, of any type.
      height: height of the image in pixels.
      width: width of the image in pixels.

    Returns:
      A list of polygons or a run-length code that is safe to use; None if there is none.
    """
    if isinstance(segmentation, dict):
        return segmentation if _is_code(segmentation, height, width) else None
    if not isinstance(segmentation, list):
        return None
    margin = max(height, width)  # Annotators go beyond the image by a little.
    if not all(_is_polygon(polygon, margin) for polygon in segmentation):
        return None
    polygons = [polygon for polygon in segmentation if len(polygon) >= _MIN_COORDINATES]
    return polygons if any(_reaches_in(polygon, height, width) for polygon in polygons) else None


def crop(segmentation, box, size: int) -> np.ndarray:
    """Rasterise the part of a mask inside a box.

    Args:
      segmentation: polygons or run-length code, in pixels of the original image.
      box: box in xyxy, pixels of the original image; it need not lie on whole pixels.
      size: number of cells M along each side of the crop.

    Returns:
      Cells of the mask, 0 or 1, uint8 [size, size].
    """
    x0, y0, x1, y1 = box
    scale = np.array([size / (x1 - x0), size / (y1 - y0)])
    if isinstance(segmentation, dict):
        mask = _decode(segmentation)
        centres = (np.arange(size) + 0.5) / size
        columns = np.clip((x0 + centres * (x1 - x0)).astype(int), 0, mask.shape[1] - 1)
        rows = np.clip((y0 + centres * (y1 - y0)).astype(int), 0, mask.shape[0] - 1)
        return mask[rows][:, columns]
    polygons = [
        ((np.array(polygon, float).reshape(-1, 2) - (x0, y0)) * scale).reshape(-1).tolist()
        for polygon in segmentation
    ]
    codes = coco_mask.frPyObjects(polygons, size, size)
    return coco_mask.decode(coco_mask.merge(codes))


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Paste a predicted mask into an image, as torchvision does.

    The mask is padded by a border of one cell, the box is enlarged accordingly and truncated to
    whole pixels, and the mask is resized to it bilinearly.

    Args:
      mask: probabilities over the box, [M, M].
      box: box in xyxy, pixels of the image, [4].
      height: height of the image in pixels.
      width: width of the image in pixels.

    Returns:
      Probabilities, float32 [height, width]; 0 outside the box.
    """
    cells = mask.shape[0]
    padded = np.pad(np.asarray(mask, np.float32), 1)
    centre, half = (box[:2] + box[2:]) * 0.5, (box[2:] - box[:2]) * 0.5
    half = half * ((cells + 2) / cells)
    x0, y0, x1, y1 = np.concatenate([centre - half, centre + half]).astype(np.int64).tolist()
    columns, rows = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    resized = cv2.resize(padded, (columns, rows), interpolation=cv2.INTER_LINEAR)
    image = np.zeros((height, width), np.float32)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1 + 1, width), min(y1 + 1, height)
    if right > left and bottom > top:
        image[top:bottom, left:right] = resized[top - y0 : bottom - y0, left - x0 : right - x0]
    return image


def encode(mask: np.ndarray) -> dict:
    """Encode a mask as COCO's compressed run-length code.

    Args:
      mask: bool [height, width].

    Returns:
      {"size": [height, width], "counts": text}, ready for JSON.
    """
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def _decode(code):
    if isinstance(code["counts"], list):
        code = coco_mask.frPyObjects(code, *code["size"])
    return coco_mask.decode(code)


def _is_polygon(polygon, margin):
    return (
        isinstance(polygon, list)
        and len(polygon) % 2 == 0
        and all(type(v) in (int, float) and -margin <= v <= 2 * margin for v in polygon)
    )


def _reaches_in(polygon, height, width):
    x, y = polygon[::2], polygon[1::2]
    return max(x) > 0 and min(x) < width and max(y) > 0 and min(y) < height


def _is_code(code, height, width):
    counts = code.get("counts")
    if code.get("size") != [height, width]:
        return False
    if isinstance(counts, list):
        valid = all(type(count) is int and count >= 0 for count in counts)
        return valid and sum(counts) == height * width
    return isinstance(counts, str) and _covers(counts, height * width)


def _covers(text, num_pixels):
    """Tell whether the runs of COCO's compressed code add up to a number of pixels.

    Each character holds six bits, counted from "0": five bits of a run's value and, as the sixth, a
    flag that more characters of the run follow. Values are signed, with the lowest bits first. From
    the fourth run on, a value is the difference to the run before the last.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return False
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return False
        value = shift = 0
    return shift == 0 and sum(runs) == num_pixels
