"""Feature pyramid network (arXiv 1612.03144), torchvision's form."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from crnas_jax.models.layers import Conv

# torchvision: Kaiming uniform with a = 1, that is variance 1 over the fan in.
_fpn_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """p2..p6 from c2..c5, p6 every second cell of p5; or RetinaNet's p3..p7 from c3..c5.

    Attributes:
      channels: channels of every level.
      p6_from: "" for p2..p6; for RetinaNet what p6 is computed from, `p5` (torchvision) or `c5`
        (arXiv 1708.02002, torchvision's second version).
    """

    channels: int = 256
    p6_from: str = ""

    @nn.compact
    def __call__(
        self, features: tuple[Float[Array, "batch _ _ _"], ...]
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        def conv(size, name, stride=1):
            options = {"use_bias": True, "kernel_init": _fpn_init, "name": name}
            return Conv(self.channels, size, stride, **options)

        top, outputs = None, []
        for level in reversed(range(3 if self.p6_from else 2, 6)):
            lateral = conv(1, f"lateral{level}")(features[level - 2])
            if top is not None:
                lateral += resize_nearest(top, lateral.shape[1:3])
            top = lateral
            outputs.insert(0, conv(3, f"output{level}")(lateral))
        if not self.p6_from:
            return (*outputs, outputs[-1][:, ::2, ::2])
        p6 = conv(3, "output6", 2)(outputs[-1] if self.p6_from == "p5" else features[-1])
        return (*outputs, p6, conv(3, "output7", 2)(nn.relu(p6)))


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
