"""Multi-level RoIAlign.

Mask R-CNN, arXiv 1703.06870, section 3; the level rule is FPN's, arXiv 1612.03144, equation 1.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from crnas_jax.ops import boxes as box_ops

SAMPLES = 2


def roi_levels(
    rois: Float[Array, "*batch 4"],
    levels: int,
    canonical_size: float = 224.0,
    canonical_level: int = 2,
) -> Int[Array, "*batch"]:
    """Index of the pyramid level each RoI is read from: 0 is p2.

    Args:
      rois: xyxy.
      levels: how many there are (4 for p2..p5).
      canonical_size: an RoI of this side belongs to `canonical_level` (2 stands for p4).
      canonical_level: see above.
    """
    size = jnp.sqrt(jnp.maximum(box_ops.area(rois), 1e-12))
    level = jnp.floor(canonical_level + jnp.log2(size / canonical_size) + 1e-6)
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


def multilevel_roi_align(
    features: tuple[Float[Array, "batch _ _ channels"], ...],
    rois: Float[Array, "batch rois 4"],
    levels: Int[Array, "batch rois"],
    canvas: tuple[int, int],
    bins: int = 7,
    aligned: bool = False,
) -> Float[Array, "batch rois bins bins channels"]:
    """Average of 2 x 2 bilinear samples in each of bins x bins cells of every RoI.

    Args:
      features: pyramid maps, finest first.
      rois: xyxy in pixels of the canvas.
      levels: the map each RoI is read from.
      canvas: (height, width) of the network's input; gives each map's stride.
      bins: cells per side.
      aligned: subtract half a cell after scaling (Detectron2). When False (torchvision), an RoI
        is at least one cell of the map on each side.

    Samples more than one cell outside the map count as 0, nearer ones are moved to the border.
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
    rows, row_weights = _cells(scaled[..., 1], scaled[..., 3], height, bins, aligned)
    columns, column_weights = _cells(scaled[..., 0], scaled[..., 2], width, bins, aligned)
    first = starts[levels][..., None, None]

    def part(i, j):
        index = rows[..., i][..., :, None] * width[..., None, None] + columns[..., j][..., None, :]
        weight = row_weights[..., i][..., :, None] * column_weights[..., j][..., None, :]
        take = jax.vmap(lambda image, where: image.at[where].get(mode="clip"))
        return take(flat, first + index) * weight[..., None]

    # One gather of a bin's size for each of its cells, summed up at once: on a CPU nine times as
    # fast as gathering all samples before they are averaged.
    parts = itertools.starmap(part, itertools.product(range(2 * SAMPLES), repeat=2))
    return functools.reduce(jnp.add, parts).astype(flat.dtype)


def _cells(start, end, cells, bins, aligned):
    """Along one side, the cells that each bin's samples lie between and their shares in the bin's
    average, both [..., bins, 2 * SAMPLES].
    """
    position, inside = _sample_positions(start, end, cells, bins, aligned)
    low, high, share = _neighbours(position, cells)
    index = jnp.stack([low, high], -1)
    weight = jnp.stack([1 - share, share], -1) * inside[..., None] / SAMPLES
    shape = (*start.shape, bins, 2 * SAMPLES)
    return index.reshape(shape), weight.reshape(shape)


def _sample_positions(start, end, cells, bins, aligned):
    """Positions [..., bins * SAMPLES] in cells of the map, and whether each counts."""
    side = end - start
    if not aligned:
        side = jnp.maximum(side, 1.0)
    steps = (jnp.arange(bins * SAMPLES) + 0.5) / SAMPLES
    position = start[..., None] + side[..., None] / bins * steps
    inside = (position >= -1.0) & (position <= cells[..., None])
    return position, inside


def _neighbours(position, cells):
    last = cells[..., None] - 1
    position = jnp.clip(position, 0, last)
    low = jnp.floor(position).astype(jnp.int32)
    return low, jnp.minimum(low + 1, last), position - low
