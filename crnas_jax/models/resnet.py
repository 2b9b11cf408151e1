"""ResNet backbones (arXiv 1512.03385), any number of blocks a stage, any dilations."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from crnas_jax.arch import Arch
from crnas_jax.models.layers import BatchNorm, BNMode, Conv


class Block(nn.Module):
    """One residual block; `operation` picks the dilation of its searched 3x3 convolution, `conv2`.

    Attributes:
      family: `resnet_basic` or `resnet_bottleneck`. The stride is on the first 3x3 convolution.
      width: channels of the 3x3 convolutions.
      out_channels: of the block.
      stride: of the block.
      project: whether the shortcut is a 1x1 convolution.
      dilations: candidates of `conv2`.
      in_control_flow: see `ops.convolution.ConvSpec`.
    """

    family: str
    width: int
    out_channels: int
    stride: int = 1
    project: bool = False
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
        def conv_bn(number, y, features, size, stride=1, dilations=(1,), operation=0):
            conv = Conv(
                features,
                size,
                stride,
                dilations,
                in_control_flow=self.in_control_flow,
                name=f"conv{number}",
            )
            return BatchNorm(name=f"bn{number}")(conv(y, operation), mode, weight)

        shortcut = x
        if self.project:
            y = Conv(
                self.out_channels,
                1,
                self.stride,
                in_control_flow=self.in_control_flow,
                name="downsample_conv",
            )(x)
            shortcut = BatchNorm(name="downsample_bn")(y, mode, weight)
        if self.family == "resnet_basic":
            y = nn.relu(conv_bn(1, x, self.width, 3, self.stride))
            y = conv_bn(2, y, self.out_channels, 3, 1, self.dilations, operation)
        else:
            y = nn.relu(conv_bn(1, x, self.width, 1))
            y = nn.relu(conv_bn(2, y, self.width, 3, self.stride, self.dilations, operation))
            y = conv_bn(3, y, self.out_channels, 1)
        return nn.relu(y + shortcut)


def block_options(arch: Arch, stage: int, first: bool) -> dict:
    """Arguments of the first or a later block of a stage (0-based)."""
    before = arch.widths[0] if stage == 0 else arch.out_channels[stage - 1]
    stride = 2 if first and stage > 0 else 1
    return {
        "family": arch.family,
        "width": arch.widths[stage],
        "out_channels": arch.out_channels[stage],
        "stride": stride,
        "project": first and (stride > 1 or before != arch.out_channels[stage]),
    }


class Stem(nn.Module):
    """7x7/2 convolution, batch normalisation, ReLU, 3x3/2 max-pooling: stride 4."""

    channels: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], mode: BNMode, weight: Float[Array, " batch"]
    ):
        x = Conv(self.channels, 7, 2, name="conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, mode, weight))
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class ResNet(nn.Module):
    """The stand-alone network of one architecture: `stage1/block1` .. `stage4/blockN`.

    Attributes:
      arch: the architecture.
      remat: recompute blocks in the backward pass instead of keeping what is inside them.
    """

    arch: Arch
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width 3"],
        choice: dict[str, Array] | None,
        mode: BNMode,
        weight: Float[Array, " batch"],
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Features c2..c5 (strides 4 to 32). `choice` is None: there is nothing to choose here."""
        del choice
        x = Stem(self.arch.widths[0], name="stem")(x, mode, weight)
        features = []
        for stage, dilations in enumerate(self.arch.stage_dilations()):
            name = f"stage{stage + 1}"
            x = Stage(self.arch, stage, dilations, self.remat, name=name)(x, mode, weight)
            features.append(x)
        return tuple(features)


class Stage(nn.Module):
    """The blocks of one stage."""

    arch: Arch
    stage: int
    dilations: tuple[int, ...]
    remat: bool

    @nn.compact
    def __call__(self, x, mode: BNMode, weight):
        # Of (self, x, operation, mode, weight) the mode is no array.
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        for index, dilation in enumerate(self.dilations):
            options = block_options(self.arch, self.stage, first=index == 0)
            x = block(**options, dilations=(dilation,), name=f"block{index + 1}")(
                x, jnp.int32(0), mode, weight
            )
        return x
