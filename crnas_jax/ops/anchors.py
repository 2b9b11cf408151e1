"""Anchors of a pyramid, torchvision's: rounded base boxes, stride = canvas // grid."""

import numpy as np
from jaxtyping import Float

RATIOS = (0.5, 1.0, 2.0)


def base_anchors(size: float, ratios: tuple[float, ...] = RATIOS) -> Float[np.ndarray, "ratios 4"]:
    """Boxes around the origin with area about `size` squared; a ratio is height over width."""
    heights = np.sqrt(np.asarray(ratios)) * size
    widths = size / np.sqrt(np.asarray(ratios))
    return np.round(np.stack([-widths, -heights, widths, heights], 1) / 2).astype(np.float32)


def pyramid_anchors(
    canvas: tuple[int, int],
    grids: tuple[tuple[int, int], ...],
    sizes: tuple[float, ...],
    ratios: tuple[float, ...] = RATIOS,
) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Anchors of each level, in the order y, x, ratio. Nothing is left out at the border.

    Args:
      canvas: (height, width) of the network's input.
      grids: (height, width) of each level's feature map.
      sizes: anchor side for each level, in pixels.
      ratios: heights over widths.
    """
    levels = []
    for (rows, columns), size in zip(grids, sizes, strict=True):
        y = np.arange(rows) * (canvas[0] // rows)
        x = np.arange(columns) * (canvas[1] // columns)
        x, y = np.meshgrid(x, y)
        centres = np.stack([x, y, x, y], -1).astype(np.float32)
        levels.append((centres[:, :, None] + base_anchors(size, ratios)).reshape(-1, 4))
    return tuple(levels)
