"""Block and stem of ResNet (arXiv 1512.03385) and ResNeXt (arXiv 1611.05431)."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from crnas_jax.arch.families import BlockShape, StemShape
from crnas_jax.models.layers import Normalization, conv_bn


def residual_block(
    x: Float[Array, "batch height width channels"], shape: BlockShape, layer: Callable
) -> Float[Array, "batch _ _ _"]:
    """Apply a basic or bottleneck block, the stride on its first 3x3 convolution.

    Args:
      x: input features.
      shape: shape of the block.
      layer: function of (features, `ConvShape`) that applies a convolution and its batch
        normalisation.
    """
    shortcut = x if shape.projection is None else layer(x, shape.projection)
    *convolutions, last = shape.convolutions
    for convolution in convolutions:
        x = nn.relu(layer(x, convolution))
    return nn.relu(layer(x, last) + shortcut)


class ResNetStem(nn.Module):
    """7x7/2 convolution, batch normalisation, ReLU, 3x3/2 max-pooling: stride 4."""

    shape: StemShape

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], norm: Normalization
    ) -> Float[Array, "batch _ _ channels"]:
        x = nn.relu(conv_bn(x, self.shape.convolutions[0], norm))
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
