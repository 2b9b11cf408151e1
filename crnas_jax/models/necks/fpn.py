"""Feature pyramid network (arXiv 1612.03144), torchvision's form."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from crnas_jax.models.layers import Conv

# torchvision: Kaiming uniform with a = 1, that is variance 1 over the fan in.
_fpn_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """p2..p6 from c2..c5; p6 is every second cell of p5.

    Attributes:
      channels: channels of every level.
    """

    channels: int = 256

    @nn.compact
    def __call__(
        self, features: tuple[Float[Array, "batch _ _ _"], ...]
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        top, outputs = None, []
        for level in reversed(range(len(features))):
            lateral = Conv(
                self.channels, 1, use_bias=True, kernel_init=_fpn_init, name=f"lateral{level + 2}"
            )(features[level])
            if top is not None:
                lateral += resize_nearest(top, lateral.shape[1:3])
            top = lateral
            output = Conv(
                self.channels, 3, use_bias=True, kernel_init=_fpn_init, name=f"output{level + 2}"
            )
            outputs.append(output(lateral))
        p2_to_p5 = outputs[::-1]
        return (*p2_to_p5, p2_to_p5[-1][:, ::2, ::2])


def resize_nearest(
    x: Float[Array, "batch _ _ channels"], size: tuple[int, int]
) -> Float[Array, "batch _ _ channels"]:
    """Resize up to `size` (height, width) by the nearest cell.

    Whole factors, the usual case, are a broadcast: a gather's gradient is a scatter, which is slow
    on accelerators.
    """
    batch, height, width, channels = x.shape
    if size == (height, width):
        return x
    if size[0] % height == 0 and size[1] % width == 0:
        factors = size[0] // height, size[1] // width
        x = x[:, :, None, :, None]
        x = jnp.broadcast_to(x, (batch, height, factors[0], width, factors[1], channels))
        return x.reshape(batch, *size, channels)
    rows = jnp.arange(size[0]) * height // size[0]
    columns = jnp.arange(size[1]) * width // size[1]
    return x[:, rows][:, :, columns]
