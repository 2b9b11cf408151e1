"""Boxes as deltas from reference boxes (Faster R-CNN, arXiv 1506.01497, equation 2)."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Bounds exp() in decode: a side grows at most 1000 / 16 times.
MAX_LOG_RATIO = math.log(1000.0 / 16)


def encode(
    boxes: Float[Array, "*batch 4"],
    references: Float[Array, "*batch 4"],
    weights: tuple[float, ...],
) -> Float[Array, "*batch 4"]:
    """Encode boxes as the deltas (dx, dy, dw, dh) that `decode` turns back into them.

    An empty box or reference (padding) gives finite deltas without meaning.

    Args:
      boxes: target boxes in xyxy, pixels, [..., 4].
      references: anchors or proposals in xyxy, the same pixels, [..., 4].
      weights: factors of the four deltas.

    Returns:
      Deltas times `weights`, [..., 4].
    """
    centre, sides = _centre_sides(boxes)
    reference_centre, reference_sides = _centre_sides(references)
    sides = jnp.maximum(sides, 1e-6)
    reference_sides = jnp.maximum(reference_sides, 1e-6)
    shift = (centre - reference_centre) / reference_sides
    scale = jnp.log(sides / reference_sides)
    return jnp.concatenate([shift, scale], -1) * _weights_like(boxes, weights)


def decode(
    deltas: Float[Array, "*batch 4"],
    references: Float[Array, "*batch 4"],
    weights: tuple[float, ...],
) -> Float[Array, "*batch 4"]:
    """Decode deltas to boxes; dw and dh are bounded above by log(1000 / 16).

    Args:
      deltas: (dx, dy, dw, dh) times `weights`, [..., 4].
      references: anchors or proposals in xyxy, pixels, [..., 4].
      weights: factors of the four deltas.

    Returns:
      Boxes in xyxy, the pixels of `references`, [..., 4].
    """
    deltas = deltas / _weights_like(deltas, weights)
    reference_centre, reference_sides = _centre_sides(references)
    centre = deltas[..., :2] * reference_sides + reference_centre
    sides = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_RATIO)) * reference_sides
    return jnp.concatenate([centre - sides / 2, centre + sides / 2], -1)


def _weights_like(array, weights):
    return lax.broadcast_to_rank(jnp.asarray(weights, array.dtype), array.ndim)


def _centre_sides(boxes):
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, sides
