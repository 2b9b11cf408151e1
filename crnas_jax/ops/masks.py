"""Instance masks, stored as crops: M x M cells that cover an object's box."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

_MAX_SAMPLES = 8


def targets(
    crops: UInt8[Array, "truths m m"],
    truth: Float[Array, "truths 4"],
    rois: Float[Array, "rois 4"],
    matched: Int[Array, " rois"],
    mask_size: int,
    aligned: bool = False,
) -> Float[Array, "rois mask_size mask_size"]:
    """Compute each RoI's mask target by RoIAlign (Mask R-CNN, arXiv 1703.06870, section 3).

    Sampling is adaptive, as in torchvision and Detectron2: as many samples in a cell as it has
    pixels, up to 8, on each side. For objects of M x M pixels the numbers are those of RoIAlign on
    the whole bitmap.

    Args:
      crops: masks of the objects, 0 or 1, [truths, M, M].
      truth: boxes of the crops in xyxy, pixels of the canvas, [truths, 4].
      rois: xyxy, the same pixels, [rois, 4].
      matched: index of each RoI's object in `crops`, [rois].
      mask_size: cells per side of a target.
      aligned: whether pixel centres lie at .5 (Detectron2). Otherwise they lie at whole numbers
        (torchvision), and an RoI has at least one pixel on each side.

    Returns:
      Share of each cell that the object covers, 0 outside the object's box, float32
      [rois, mask_size, mask_size].
    """
    num_cells = crops.shape[-1]
    boxes = truth[matched]

    def weights(start, end, low, high):
        """Return the share of each row (column) of the crop in each row (column) of the target."""
        shift = 0.0 if aligned else 0.5
        start, side = start - low + shift, end - start
        side = side if aligned else jnp.maximum(side, 1.0)
        num_samples = jnp.clip(jnp.ceil(side / mask_size), 1, _MAX_SAMPLES)[:, None]
        scale = (num_cells / jnp.maximum(high - low, 1e-6))[:, None]
        total = 0.0
        for sample in range(_MAX_SAMPLES):
            steps = jnp.arange(mask_size)[None] + (sample + 0.5) / num_samples
            position = (start[:, None] + side[:, None] / mask_size * steps) * scale - 0.5
            # Linear interpolation between the centres of cells, with 0 beyond the outermost.
            share = jax.nn.relu(1 - abs(position[..., None] - jnp.arange(num_cells)[None, None]))
            total += jnp.where(sample < num_samples, 1 / num_samples, 0)[..., None] * share
        return total

    rows = weights(rois[:, 1], rois[:, 3], boxes[:, 1], boxes[:, 3])
    columns = weights(rois[:, 0], rois[:, 2], boxes[:, 0], boxes[:, 2])
    return jnp.einsum("rim,rmn,rjn->rij", rows, crops[matched].astype(jnp.float32), columns)
