"""Blocks, stem and tail of MobileNetV2 (arXiv 1801.04381)."""

import functools

import flax.linen as nn
from jaxtyping import Array, Float, Int

from crnas_jax.families import BlockShape
from crnas_jax.models.layers import BNMode, conv_bn


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3, linear projection; the depthwise one, `conv2`, is searched.

    Attributes:
      shape: of the block.
      dilations: candidates of `conv2`.
      in_control_flow: see `ops.convolution.ConvSpec`.
    """

    shape: BlockShape
    dilations: tuple[int, ...] = (1,)
    in_control_flow: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        operation: Int[Array, ""] | int,
        mode: BNMode,
        weight: Float[Array, " batch"],
    ):
        shape, y = self.shape, x
        layer = functools.partial(
            conv_bn, mode=mode, weight=weight, in_control_flow=self.in_control_flow
        )
        if shape.expands:
            y = nn.relu6(layer(y, shape.inner_channels, 1, name="1"))
        y = layer(
            y,
            shape.inner_channels,
            3,
            shape.stride,
            shape.groups,
            name="2",
            dilations=self.dilations,
            operation=operation,
        )
        y = layer(nn.relu6(y), shape.out_channels, 1, name="3")
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
