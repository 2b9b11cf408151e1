"""Block, stem and tail of MobileNetV2 (arXiv 1801.04381)."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from crnas_jax.arch.families import BlockShape, StemShape, TailShape
from crnas_jax.models.layers import Normalization, conv_bn


def inverted_residual_block(
    x: Float[Array, "batch height width channels"], shape: BlockShape, layer: Callable
) -> Float[Array, "batch _ _ _"]:
    """Apply expansion, depthwise 3x3 and linear projection; arguments as `residual_block`."""
    y = x
    *convolutions, last = shape.convolutions
    for convolution in convolutions:
        y = nn.relu6(layer(y, convolution))
    y = layer(y, last)
    return x + y if shape.has_identity else y


class MobileNetLayer(nn.Module):
    """One convolution, batch normalisation, ReLU6: the stem (3x3/2) and the tail (1x1)."""

    shape: StemShape | TailShape

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width _"], norm: Normalization
    ) -> Float[Array, "batch _ _ channels"]:
        return nn.relu6(conv_bn(x, self.shape.convolutions[0], norm))
