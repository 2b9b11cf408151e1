"""Blocks and stem of ResNet (arXiv 1512.03385) and ResNeXt (arXiv 1611.05431)."""

import functools

import flax.linen as nn
from jaxtyping import Array, Float, Int

from crnas_jax.families import BlockShape
from crnas_jax.models.layers import BNMode, conv_bn


class ResidualBlock(nn.Module):
    """Basic or bottleneck; `operation` picks the dilation of its searched convolution, `conv2`.

    Attributes:
      shape: of the block.
      dilations: candidates of `conv2`: a bottleneck's centre, a basic block's second.
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
        shape = self.shape
        layer = functools.partial(
            conv_bn, mode=mode, weight=weight, in_control_flow=self.in_control_flow
        )
        searched = {"name": "2", "dilations": self.dilations, "operation": operation}
        shortcut = x
        if shape.projects:
            shortcut = layer(x, shape.out_channels, 1, shape.stride, prefix="downsample_")
        if shape.kind == "basic":
            y = nn.relu(layer(x, shape.inner_channels, 3, shape.stride, name="1"))
            y = layer(y, shape.out_channels, 3, **searched)
        else:
            y = nn.relu(layer(x, shape.inner_channels, 1, name="1"))
            y = layer(y, shape.inner_channels, 3, shape.stride, shape.groups, **searched)
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
