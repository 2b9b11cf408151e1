"""RoIAlign on a feature pyramid.

Mask R-CNN, arXiv 1703.06870, section 3; the choice of level is FPN, arXiv 1612.03144, equation 1.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from crnas_jax.ops import boxes as box_ops

SAMPLES = 2


def roi_levels(
    rois: Float[Array, "*batch 4"],
    levels: int,
    canonical_size: float = 224.0,
    canonical_level: int = 2,
) -> Int[Array, "*batch"]:
    """Assign each RoI to a pyramid level by its area (FPN, arXiv 1612.03144, equation 1).

    Args:
      rois: xyxy, pixels of the canvas, [..., 4].
      levels: number of pyramid levels (4 for p2..p5).
      canonical_size: side of a square RoI that is read from `canonical_level`, in pixels.
      canonical_level: index of that level (2 for p4).

    Returns:
      Index of the level for each RoI, 0 for p2, int32 [...].
    """
    size = jnp.sqrt(jnp.maximum(box_ops.area(rois), 1e-12))
    level = jnp.floor(canonical_level + jnp.log2(size / canonical_size) + 1e-6)
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


def multilevel_roi_align(
    features: tuple[Float[Array, "batch _ _ channels"], ...],
    rois: Float[Array, "batch rois 4"],
    levels: Int[Array, "batch rois"],
    canvas: tuple[int, int],
    pool_size: int = 7,
    aligned: bool = False,
) -> Float[Array, "batch rois pool_size pool_size channels"]:
    """Pool every RoI to pool_size x pool_size bins (Mask R-CNN, arXiv 1703.06870, section 3).

    A bin is the average of 2 x 2 bilinear samples. Samples more than one cell outside the map count
    as 0, nearer ones are moved to the border.

    Args:
      features: pyramid maps, finest first, each [batch, height, width, channels].
      rois: xyxy, pixels of the canvas, [batch, rois, 4].
      levels: index of the map each RoI is read from, [batch, rois].
      canvas: (height, width) of the network's input, in pixels; gives each map's stride.
      pool_size: number of bins per side.
      aligned: whether half a cell is subtracted after scaling (Detectron2). When False
        (torchvision), an RoI is at least one cell of the map on each side.

    Returns:
      Pooled features in the dtype of the maps, [batch, rois, pool_size, pool_size, channels].
    """
    batch, channels = len(rois), features[0].shape[-1]
    shapes = jnp.array([map_.shape[1:3] for map_ in features])
    sizes = [map_.shape[1] * map_.shape[2] for map_ in features]
    starts = jnp.array([sum(sizes[:level]) for level in range(len(sizes))])
    # All maps end to end: one gather serves every level.
    flat = jnp.concatenate([map_.reshape(batch, -1, channels) for map_ in features], 1)
    # torchvision infers the scale as a power of two from the first map's size.
    scales = jnp.array([2.0 ** round(math.log2(map_.shape[1] / canvas[0])) for map_ in features])

    height, width = shapes[levels][..., 0], shapes[levels][..., 1]
    scaled = rois * scales[levels][..., None] - (0.5 if aligned else 0.0)
    rows, row_weights = _cells(scaled[..., 1], scaled[..., 3], height, pool_size, aligned)
    columns, column_weights = _cells(scaled[..., 0], scaled[..., 2], width, pool_size, aligned)
    first = starts[levels][..., None, None]

    def part(i, j):
        index = rows[..., i][..., :, None] * width[..., None, None] + columns[..., j][..., None, :]
        weight = row_weights[..., i][..., :, None] * column_weights[..., j][..., None, :]
        take = jax.vmap(lambda image, places: image.at[places].get(mode="clip"))
        return take(flat, first + index) * weight[..., None]

    # Each pair (i, j) gathers one cell per bin, and the parts are summed as they come: on a CPU
    # this is nine times as fast as gathering all samples before they are averaged.
    parts = itertools.starmap(part, itertools.product(range(2 * SAMPLES), repeat=2))
    return functools.reduce(jnp.add, parts).astype(flat.dtype)


def _cells(start, end, num_cells, pool_size, aligned):
    """Return the cells along one side that each bin averages, and their shares in the average.

    Both are [..., pool_size, 2 * SAMPLES]; a sample lies between two cells.
    """
    position, inside = _sample_positions(start, end, num_cells, pool_size, aligned)
    low, high, share = _neighbours(position, num_cells)
    index = jnp.stack([low, high], -1)
    weight = jnp.stack([1 - share, share], -1) * inside[..., None] / SAMPLES
    shape = (*start.shape, pool_size, 2 * SAMPLES)
    return index.reshape(shape), weight.reshape(shape)


def _sample_positions(start, end, num_cells, pool_size, aligned):
    """Return positions in cells of the map and whether each counts, [..., pool_size * SAMPLES]."""
    side = end - start
    if not aligned:
        side = jnp.maximum(side, 1.0)
    steps = (jnp.arange(pool_size * SAMPLES) + 0.5) / SAMPLES
    steps = lax.broadcast_to_rank(steps, side.ndim + 1)
    position = start[..., None] + side[..., None] / pool_size * steps
    inside = (position >= -1.0) & (position <= num_cells[..., None])
    return position, inside


def _neighbours(position, num_cells):
    """Return the two cells around each position, and the share of the second."""
    last = num_cells[..., None] - 1
    position = jnp.clip(position, 0, last)
    low = jnp.floor(position).astype(jnp.int32)
    return low, jnp.minimum(low + 1, last), position - low
