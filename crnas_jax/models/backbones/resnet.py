"""Blocks and stem of ResNet (arXiv 1512.03385) and ResNeXt (arXiv 1611.05431)."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from crnas_jax.arch.families import BlockShape
from crnas_jax.models.layers import BNMode, conv_bn


def residual(x, shape: BlockShape, layer: Callable, searched: Callable):
    """A basic or bottleneck block, the stride on its first 3x3 convolution.

    Args:
      x: [batch, height, width, channels].
      shape: of the block.
      layer: makes a convolution and its batch normalisation (`layers.conv_bn`).
      searched: the same for the one whose dilation is searched.
    """
    shortcut = x
    if shape.projects:
        shortcut = layer(x, shape.out_channels, 1, shape.stride, prefix="downsample_")
    if shape.kind == "basic":
        y = nn.relu(layer(x, shape.inner_channels, 3, shape.stride, name="1"))
        y = searched(y, shape.out_channels, 3)
    else:
        y = nn.relu(layer(x, shape.inner_channels, 1, name="1"))
        y = searched(y, shape.inner_channels, 3, shape.stride, shape.groups)
        y = layer(nn.relu(y), shape.out_channels, 1, name="3")
    return nn.relu(y + shortcut)


class ResNetStem(nn.Module):
    """7x7/2 convolution, batch normalisation, ReLU, 3x3/2 max-pooling: stride 4."""

    channels: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], mode: BNMode, weight: Float[Array, " batch"]
    ):
        x = nn.relu(conv_bn(x, self.channels, 7, 2, name="1", mode=mode, weight=weight))
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
