"""Blocks, stem and tail of MobileNetV2 (arXiv 1801.04381)."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from crnas_jax.arch.families import BlockShape
from crnas_jax.models.layers import BNMode, conv_bn


def inverted_residual(x, shape: BlockShape, layer: Callable, searched: Callable):
    """Expansion, depthwise 3x3, linear projection; arguments as `resnet.residual`."""
    y = x
    if shape.expands:
        y = nn.relu6(layer(y, shape.inner_channels, 1, name="1"))
    y = nn.relu6(searched(y, shape.inner_channels, 3, shape.stride, shape.groups))
    y = layer(y, shape.out_channels, 1, name="3")
    same = shape.stride == 1 and shape.in_channels == shape.out_channels
    return x + y if same else y


class MobileNetStem(nn.Module):
    """3x3/2 convolution, batch normalisation, ReLU6: stride 2."""

    channels: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], mode: BNMode, weight: Float[Array, " batch"]
    ):
        return nn.relu6(conv_bn(x, self.channels, 3, 2, name="1", mode=mode, weight=weight))


class MobileNetTail(nn.Module):
    """The last 1x1 convolution, batch normalisation, ReLU6."""

    channels: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width _"], mode: BNMode, weight: Float[Array, " batch"]
    ):
        return nn.relu6(conv_bn(x, self.channels, 1, name="1", mode=mode, weight=weight))
