"""Boxes are xyxy, float32 pixels of the network's input; widths are x2 - x1."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def area(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Area in square pixels; a box turned inside out has none."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(boxes: Float[Array, "n 4"], others: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of every pair; 0 where both boxes are empty."""
    top_left = jnp.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = jnp.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = jnp.maximum(bottom_right - top_left, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = area(boxes)[:, None] + area(others)[None, :] - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def clip(boxes: Float[Array, "*batch 4"], size: Int[Array, "2"]) -> Float[Array, "*batch 4"]:
    """Boxes cut to an image of `size` (height, width)."""
    height, width = size[0], size[1]
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, limits)


def larger_than(boxes: Float[Array, "*batch 4"], side: float) -> Bool[Array, "*batch"]:
    """Whether both sides are at least `side` pixels."""
    return (boxes[..., 2] - boxes[..., 0] >= side) & (boxes[..., 3] - boxes[..., 1] >= side)
