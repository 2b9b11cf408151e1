"""Block and stem of ResNet (arXiv 1512.03385) and ResNeXt (arXiv 1611.05431)."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from crnas_jax.arch.families import BlockShape, StemShape
from crnas_jax.models.layers import Normalization, conv_bn, kaiming_normal


def residual_block(
    x: Float[Array, "batch height width channels"],
    shape: BlockShape,
    layer: Callable,
    norm: Normalization,
    depth: float = 0.0,
) -> Float[Array, "batch _ _ _"]:
    """Apply a basic or bottleneck block, the stride on its first 3x3 convolution.

    Args:
      x: input features.
      shape: shape of the block.
      layer: function of (features, `ConvShape`) that applies a convolution and its batch
        normalisation.
      norm: activation, and what is left out in training.
      depth: place of the block in the network, 0..1, for stochastic depth.
    """
    shortcut = x if shape.projection is None else layer(x, shape.projection)
    *convolutions, last = shape.convolutions
    for convolution in convolutions:
        x = norm.activate(layer(x, convolution))
    return norm.activate(norm.drop_path(layer(x, last), depth) + shortcut)


class Stem(nn.Module):
    """A convolution of stride 2, batch normalisation, activation, and perhaps 3x3/2 max-pooling."""

    shape: StemShape
    kernel_init: nn.initializers.Initializer = kaiming_normal

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], norm: Normalization
    ) -> Float[Array, "batch _ _ channels"]:
        (convolution,) = self.shape.convolutions
        x = norm.activate(conv_bn(x, convolution, norm, kernel_init=self.kernel_init))
        if self.shape.pool_stride == 1:
            return x
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
