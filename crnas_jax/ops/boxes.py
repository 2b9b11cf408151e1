"""Box arithmetic: xyxy, float32 pixels of the network's input; a width is x2 - x1."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def area(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Return the area of each box in square pixels, 0 for a box turned inside out.

    Args:
      boxes: xyxy, pixels, [..., 4].
    """
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(boxes: Float[Array, "n 4"], other_boxes: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Return the IoU of every pair of boxes, 0 where both are empty.

    Args:
      boxes: xyxy, pixels, [n, 4].
      other_boxes: xyxy, the same pixels, [m, 4].

    Returns:
      Intersection over union of `boxes` (rows) and `other_boxes` (columns), [n, m].
    """
    top_left = jnp.maximum(boxes[:, None, :2], other_boxes[None, :, :2])
    bottom_right = jnp.minimum(boxes[:, None, 2:], other_boxes[None, :, 2:])
    sides = jnp.maximum(bottom_right - top_left, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(boxes)[:, None] + area(other_boxes)[None, :] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def clip(boxes: Float[Array, "*batch 4"], size: Int[Array, "2"]) -> Float[Array, "*batch 4"]:
    """Clip boxes to an image.

    Args:
      boxes: xyxy, pixels, [..., 4].
      size: (height, width) of the image, in pixels.
    """
    height, width = size[0], size[1]
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, lax.broadcast_to_rank(limits, boxes.ndim))


def larger_than(boxes: Float[Array, "*batch 4"], side: float) -> Bool[Array, "*batch"]:
    """Return whether both sides of each box are at least `side` pixels.

    Args:
      boxes: xyxy, pixels, [..., 4].
      side: length that passes, in pixels.
    """
    return (boxes[..., 2] - boxes[..., 0] >= side) & (boxes[..., 3] - boxes[..., 1] >= side)
