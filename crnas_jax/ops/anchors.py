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


def octave_anchors(
    canvas: tuple[int, int], grids: tuple[tuple[int, int], ...], sizes: tuple[float, ...]
) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Place RetinaNet's anchors as torchvision does: three sides of three ratios at each cell.

    Args:
      canvas: (height, width) of the network's input, in pixels.
      grids: (height, width) of each level's feature map, in cells.
      sizes: side of the smallest anchor at each level, in pixels; the others are 2^(1/3) and
        2^(2/3) times as large, in whole pixels.

    Returns:
      One array for each level, in the order y, x, ratio (height over width), side; else as
      `pyramid_anchors`.
    """
    levels = []
    for grid, size in zip(grids, sizes, strict=True):
        octaves = [
            pyramid_anchors(canvas, (grid,), (side,))[0].reshape(-1, len(RATIOS), 4)
            for side in (size, *(int(size * 2 ** (octave / 3)) for octave in (1, 2)))
        ]
        levels.append(np.stack(octaves, 2).reshape(-1, 4))
    return tuple(levels)


def centred_octave_anchors(
    strides: tuple[int, ...], grids: tuple[tuple[int, int], ...], sizes: tuple[float, ...]
) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Place SpineNet's anchors: three sides of three ratios around the centre of each cell.

    Args:
      strides: cells' side at each level, in pixels.
      grids: (height, width) of each level's feature map, in cells.
      sizes: side of the smallest anchor at each level, in pixels.

    Returns:
      One array for each level, in the order y, x, side, ratio (width over height: 1, 2, 1/2): xyxy
      in pixels of the canvas, float32 [height * width * 9, 4].
    """
    levels = []
    ratios = np.array([1.0, 2.0, 0.5])
    for stride, (rows, columns), size in zip(strides, grids, sizes, strict=True):
        x, y = np.meshgrid((np.arange(columns) + 0.5) * stride, (np.arange(rows) + 0.5) * stride)
        sides = size * 2 ** (np.arange(3) / 3)
        widths = (sides[:, None] * np.sqrt(ratios)).reshape(-1)
        heights = (sides[:, None] / np.sqrt(ratios)).reshape(-1)
        base = np.stack([-widths, -heights, widths, heights], 1) / 2
        centres = np.stack([x, y, x, y], -1)[:, :, None]
        levels.append((centres + base).reshape(-1, 4).astype(np.float32))
    return tuple(levels)
