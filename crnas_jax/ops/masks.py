"""Instance masks, stored as crops: M x M cells that cover an object's box."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

_MOST_SAMPLES = 8


def targets(
    crops: UInt8[Array, "truths m m"],
    truth: Float[Array, "truths 4"],
    rois: Float[Array, "rois 4"],
    matched: Int[Array, " rois"],
    size: int,
    aligned: bool = False,
) -> Float[Array, "rois size size"]:
    """RoIAlign of each RoI's own object mask; outside the object's box the mask is 0.

    Adaptive sampling as torchvision's and Detectron2's: as many samples in a cell as it has
    pixels, up to 8, on each side. For objects of M x M pixels the numbers are those of RoIAlign on
    the whole bitmap.

    Args:
      crops: 0 or 1.
      truth: boxes of the crops, xyxy.
      rois: xyxy, in the same pixels.
      matched: the crop of each RoI.
      size: cells per side of a target.
      aligned: pixel centres lie at .5 (Detectron2); otherwise at whole numbers (torchvision), and a
        RoI has at least one pixel on each side.
    """
    cells = crops.shape[-1]
    boxes = truth[matched]

    def weights(start, end, low, high):
        """How much of each row (column) of the crop each row (column) of the target takes."""
        shift = 0.0 if aligned else 0.5
        start, side = start - low + shift, end - start
        side = side if aligned else jnp.maximum(side, 1.0)
        number = jnp.clip(jnp.ceil(side / size), 1, _MOST_SAMPLES)[:, None]
        scale = (cells / jnp.maximum(high - low, 1e-6))[:, None]
        total = 0.0
        for sample in range(_MOST_SAMPLES):
            steps = jnp.arange(size) + (sample + 0.5) / number
            position = (start[:, None] + side[:, None] / size * steps) * scale - 0.5
            # Linear interpolation between the centres of cells, with 0 beyond the outermost.
            near = jax.nn.relu(1 - abs(position[..., None] - jnp.arange(cells)))
            total += jnp.where(sample < number, 1 / number, 0)[..., None] * near
        return total

    rows = weights(rois[:, 1], rois[:, 3], boxes[:, 1], boxes[:, 3])
    columns = weights(rois[:, 0], rois[:, 2], boxes[:, 0], boxes[:, 2])
    return jnp.einsum("rim,rmn,rjn->rij", rows, crops[matched].astype(jnp.float32), columns)
