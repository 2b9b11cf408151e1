"""Parts of a network that are left out in training: stochastic depth and DropBlock."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


def drop_path(
    branch: Float[Array, "batch height width channels"], kept: Bool[Array, " batch"], rate: float
) -> Float[Array, "batch height width channels"]:
    """Drop the residual branch of some images (stochastic depth, arXiv 1603.09382).

    Args:
      branch: the branch, before it is added to the shortcut.
      kept: images that keep it, drawn with probability 1 - `rate`.
      rate: share of images that lose it; what is kept is divided by 1 - `rate`.
    """
    factor = jnp.where(kept, 1 / (1 - rate), 0).astype(branch.dtype)
    return branch * factor[:, None, None, None]


def drop_block_rate(
    share: Float[Array, " batch"], size: tuple[int, int], block: tuple[int, int]
) -> Float[Array, " batch"]:
    """Return the probability of a corner at each cell (DropBlock, arXiv 1810.12890, equation 1).

    Args:
      share: share of the cells that are to be dropped, for each image.
      size: (height, width) of the map.
      block: (height, width) of a dropped block.
    """
    corners = (size[0] - block[0] + 1) * (size[1] - block[1] + 1)
    return share * (size[0] * size[1]) / (block[0] * block[1] * corners)


def drop_block(
    x: Float[Array, "batch height width channels"],
    corners: Bool[Array, "batch rows columns channels"],
) -> Float[Array, "batch height width channels"]:
    """Drop blocks of cells (DropBlock, arXiv 1810.12890, algorithm 1).

    What is kept of an image is divided by the kept share of its map.

    Args:
      x: features.
      corners: top left cells of the dropped blocks, [batch, height - b + 1, width - c + 1,
        channels] for blocks of b x c cells.
    """
    rows, columns = (
        whole - part for whole, part in zip(x.shape[1:3], corners.shape[1:3], strict=True)
    )
    padding = ((0, 0), (rows, rows), (columns, columns), (0, 0))
    window = (1, rows + 1, columns + 1, 1)
    dropped = lax.reduce_window(
        corners.astype(jnp.float32), 0.0, lax.max, window, (1, 1, 1, 1), padding
    )
    kept = 1 - dropped
    share = jnp.maximum(kept.mean((1, 2, 3), keepdims=True), 1e-6)
    return x * (kept / share).astype(x.dtype)
