"""Block, stem and tail of MobileNetV2 (arXiv 1801.04381), and the MBConv that followed it."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from crnas_jax.arch.families import BlockShape, StemShape, TailShape
from crnas_jax.models.layers import Normalization, conv_bn, fan_in_normal


def inverted_residual_block(
    x: Float[Array, "batch height width channels"],
    shape: BlockShape,
    layer: Callable,
    norm: Normalization,
    depth: float = 0.0,
) -> Float[Array, "batch _ _ _"]:
    """Apply expansion, depthwise 3x3 and linear projection; arguments as `residual_block`.

    With `shape.squeeze` the depthwise convolution's output passes a squeeze-excitation (MnasNet's
    MBConv, arXiv 1807.11626).
    """
    y = x
    *convolutions, last = shape.convolutions
    for convolution in convolutions:
        y = norm.activate(layer(y, convolution))
    if shape.squeeze:
        y = _squeeze_excitation(y, shape.squeeze, norm)
    y = layer(y, last)
    return x + norm.drop_path(y, depth) if shape.has_identity else y


def _squeeze_excitation(x, units, norm):
    """Scale each channel by a gate from the mean of all channels (arXiv 1709.01507)."""

    def dense(features, name):
        return nn.Dense(features, dtype=x.dtype, kernel_init=fan_in_normal, name=name)

    gate = norm.activate(dense(units, "squeeze")(x.mean((1, 2))))
    gate = nn.sigmoid(dense(x.shape[-1], "excite")(gate))
    return x * gate[:, None, None]


class MobileNetLayer(nn.Module):
    """One convolution, batch normalisation, activation: the stem (3x3/2) and the tail (1x1)."""

    shape: StemShape | TailShape

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width _"], norm: Normalization
    ) -> Float[Array, "batch _ _ channels"]:
        return norm.activate(conv_bn(x, self.shape.convolutions[0], norm))
