"""Instance masks: COCO's polygons and run-length codes to crops, and predicted crops to codes."""

import cv2
import numpy as np
from pycocotools import mask as coco_mask

# pycocotools' polygons need three points.
_LEAST_NUMBERS = 6


def is_mask(segmentation) -> bool:
    """Whether this is a list of polygons (one at least) or a run-length code."""
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        whole = isinstance(size, list) and len(size) == 2
        whole = whole and all(type(side) is int and 0 < side < 2**31 for side in size)
        return whole and (isinstance(counts, str) or _numbers(counts))
    if not isinstance(segmentation, list):
        return False
    return any(_is_polygon(polygon) for polygon in segmentation)


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
        if _is_polygon(polygon)
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


def _is_polygon(polygon):
    return _numbers(polygon) and len(polygon) >= _LEAST_NUMBERS and len(polygon) % 2 == 0


def _numbers(values):
    return isinstance(values, list) and all(
        type(value) in (int, float) and abs(value) < 1e12 for value in values
    )
