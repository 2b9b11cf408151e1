"""Anchors of a feature pyramid, as torchvision makes them: base boxes with rounded corners, placed
with the stride canvas // grid.
"""

import numpy as np
from jaxtyping import Float

RATIOS = (0.5, 1.0, 2.0)


def base_anchors(size: float, ratios: tuple[float, ...] = RATIOS) -> Float[np.ndarray, "ratios 4"]:
    """Return boxes around the origin with an area of about `size` squared.

    Args:
      size: side of a square anchor, in pixels.
      ratios: heights over widths.

    Returns:
      Boxes in xyxy, rounded to whole pixels, float32 [ratios, 4].
    """
    heights = np.sqrt(np.asarray(ratios)) * size
    widths = size / np.sqrt(np.asarray(ratios))
    return np.round(np.stack([-widths, -heights, widths, heights], 1) / 2).astype(np.float32)


def pyramid_anchors(
    canvas: tuple[int, int],
    grids: tuple[tuple[int, int], ...],
    sizes: tuple[float, ...],
    ratios: tuple[float, ...] = RATIOS,
) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Place the anchors of every pyramid level, one size per level (FPN, arXiv 1612.03144, 4.1).

    Anchors that cross the border stay.

    Args:
      canvas: (height, width) of the network's input, in pixels.
      grids: (height, width) of each level's feature map, in cells.
      sizes: anchor side for each level, in pixels.
      ratios: heights over widths.

    Returns:
      One array for each level, in the order y, x, ratio: xyxy in pixels of the canvas, float32
      [height * width * ratios, 4].

    Raises:
      ValueError: `grids` and `sizes` differ in length.
    """
    levels = []
    for (rows, columns), size in zip(grids, sizes, strict=True):
        y = np.arange(rows) * (canvas[0] // rows)
        x = np.arange(columns) * (canvas[1] // columns)
        x, y = np.meshgrid(x, y)
        centres = np.stack([x, y, x, y], -1).astype(np.float32)
        levels.append((centres[:, :, None] + base_anchors(size, ratios)).reshape(-1, 4))
    return tuple(levels)
