"""Boxes as deltas from reference boxes (Faster R-CNN, arXiv 1506.01497, equation 2)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# Bounds exp() in decode: a side grows at most 1000 / 16 times.
MAX_LOG_RATIO = math.log(1000.0 / 16)


def encode(
    boxes: Float[Array, "*batch 4"],
    references: Float[Array, "*batch 4"],
    weights: tuple[float, ...],
) -> Float[Array, "*batch 4"]:
    """Deltas (dx, dy, dw, dh) that `decode` turns back into `boxes`.

    Args:
      boxes: target boxes, xyxy.
      references: anchors or proposals, xyxy.
      weights: factors of the four deltas.

    An empty box or reference (padding) gives finite deltas without meaning.
    """
    centre, sides = _centre_sides(boxes)
    reference_centre, reference_sides = _centre_sides(references)
    sides = jnp.maximum(sides, 1e-6)
    reference_sides = jnp.maximum(reference_sides, 1e-6)
    shift = (centre - reference_centre) / reference_sides
    scale = jnp.log(sides / reference_sides)
    return jnp.concatenate([shift, scale], -1) * jnp.asarray(weights, boxes.dtype)


def decode(
    deltas: Float[Array, "*batch 4"],
    references: Float[Array, "*batch 4"],
    weights: tuple[float, ...],
) -> Float[Array, "*batch 4"]:
    """Boxes (xyxy) from deltas; dw and dh are bounded above by log(1000 / 16)."""
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    reference_centre, reference_sides = _centre_sides(references)
    centre = deltas[..., :2] * reference_sides + reference_centre
    sides = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_RATIO)) * reference_sides
    return jnp.concatenate([centre - sides / 2, centre + sides / 2], -1)


def _centre_sides(boxes):
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, sides
