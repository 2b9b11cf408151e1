"""Instance masks: COCO's polygons and run-length codes to crops, and predicted crops to codes."""

import cv2
import numpy as np
from pycocotools import mask as coco_mask

# pycocotools' polygons need three points.
_LEAST_NUMBERS = 6


def checked(segmentation, height: int, width: int):
    """A list of polygons or a run-length code as it may be used, None for anything else.

    pycocotools checks nothing: what gets past here neither crashes it nor is read wrongly. Polygons
    of two points, which COCO has a few of, are left out where there are others.

    Args:
      segmentation: of an annotation.
      height: of its image.
      width: of its image.
    """
    if isinstance(segmentation, dict):
        return segmentation if _is_code(segmentation, height, width) else None
    if not isinstance(segmentation, list):
        return None
    reach = max(height, width)  # annotators leave the image by a little
    if not all(_is_polygon(polygon, reach) for polygon in segmentation):
        return None
    return [polygon for polygon in segmentation if len(polygon) >= _LEAST_NUMBERS] or None


def crop(segmentation, box, size: int) -> np.ndarray:
    """The part of a mask inside a box, as `size` x `size` cells.

    Args:
      segmentation: polygons or run-length code, in pixels of the original image.
      box: xyxy in the same pixels; it need not lie on whole pixels.
      size: M.

    Returns:
      uint8 [size, size], 0 or 1.
    """
    x0, y0, x1, y1 = box
    scale = np.array([size / (x1 - x0), size / (y1 - y0)])
    if isinstance(segmentation, dict):
        whole = _decode(segmentation)
        centres = (np.arange(size) + 0.5) / size
        columns = np.clip((x0 + centres * (x1 - x0)).astype(int), 0, whole.shape[1] - 1)
        rows = np.clip((y0 + centres * (y1 - y0)).astype(int), 0, whole.shape[0] - 1)
        return whole[rows][:, columns]
    polygons = [
        ((np.array(polygon, float).reshape(-1, 2) - (x0, y0)) * scale).reshape(-1).tolist()
        for polygon in segmentation
    ]
    codes = coco_mask.frPyObjects(polygons, size, size)
    return coco_mask.decode(coco_mask.merge(codes))


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A predicted mask on the image, torchvision's way: the box, grown by the mask's border of one
    cell and cut to whole pixels, is filled bilinearly.

    Args:
      mask: probabilities [M, M] over the box.
      box: xyxy in pixels of the image.
      height: of the image.
      width: of the image.

    Returns:
      Probabilities, float32 [height, width].
    """
    cells = mask.shape[0]
    padded = np.pad(np.asarray(mask, np.float32), 1)
    centre, half = (box[:2] + box[2:]) * 0.5, (box[2:] - box[:2]) * 0.5
    half = half * ((cells + 2) / cells)
    x0, y0, x1, y1 = np.concatenate([centre - half, centre + half]).astype(np.int64).tolist()
    columns, rows = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    filled = cv2.resize(padded, (columns, rows), interpolation=cv2.INTER_LINEAR)
    image = np.zeros((height, width), np.float32)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1 + 1, width), min(y1 + 1, height)
    if right > left and bottom > top:
        image[top:bottom, left:right] = filled[top - y0 : bottom - y0, left - x0 : right - x0]
    return image


def encode(mask: np.ndarray) -> dict:
    """COCO's run-length code of a bool mask [height, width], ready for JSON."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def _decode(code):
    if isinstance(code["counts"], list):
        code = coco_mask.frPyObjects(code, *code["size"])
    return coco_mask.decode(code)


def _is_polygon(polygon, reach):
    return (
        isinstance(polygon, list)
        and len(polygon) % 2 == 0
        and all(type(v) in (int, float) and -reach <= v <= 2 * reach for v in polygon)
    )


def _is_code(code, height, width):
    counts = code.get("counts")
    if code.get("size") != [height, width]:
        return False
    if isinstance(counts, list):
        whole = all(type(count) is int and count >= 0 for count in counts)
        return whole and sum(counts) == height * width
    return isinstance(counts, str) and _fills(counts, height * width)


def _fills(text, pixels):
    """Whether the runs of COCO's compressed code make up so many pixels.

    The code: six bits a character from "0" on, of which the sixth says that more follow; five bits
    each, lowest first, signed; from the fourth run on, differences to the run before the last.
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
    return shift == 0 and sum(runs) == pixels
