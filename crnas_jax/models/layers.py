"""The layers every network here is built of: one convolution, one batch normalisation."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, UInt8

from crnas_jax.ops.convolution import ConvSpec, switched_conv

# Kernel initialisation of torchvision's backbones: He normal over the fan out.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# The name of convolution outputs in policies of `jax.checkpoint`.
CONV_OUTPUT = "conv_output"
# Of ImageNet's training images, RGB, for values of 0..1.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def preprocess(
    image: UInt8[Array, "batch height width 3"], image_size: Int[Array, "batch 2"], dtype
) -> Float[Array, "batch height width 3"]:
    """RGB uint8 to ImageNet-normalised `dtype`; 0 on the canvas beside the image."""
    x = (image.astype(jnp.float32) / 255 - jnp.array(_MEAN)) / jnp.array(_STD)
    inside_rows = jnp.arange(image.shape[1])[None, :] < image_size[:, :1]
    inside_columns = jnp.arange(image.shape[2])[None, :] < image_size[:, 1:]
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[..., None]
    return jnp.where(inside, x, 0).astype(dtype)


class Conv(nn.Module):
    """Square convolution; with `dilations` of more than one entry the call's `operation` picks one.

    It computes in the dtype of its input; parameters are float32.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: of the output.
      dilations: candidates.
      groups: of channels.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel.
      in_control_flow: see `convolution.ConvSpec`.
    """

    features: int
    size: int
    stride: int = 1
    dilations: tuple[int, ...] = (1,)
    groups: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = kaiming_normal
    in_control_flow: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], operation: Int[Array, ""] | int = 0
    ):
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(x.dtype)
        in_control_flow = self.in_control_flow or len(self.dilations) > 1
        specs = tuple(
            ConvSpec(self.stride, dilation, self.groups, in_control_flow)
            for dilation in self.dilations
        )
        y = switched_conv(x, kernel, jnp.asarray(operation, jnp.int32), specs)
        y = checkpoint_name(y, CONV_OUTPUT)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y


@dataclasses.dataclass(frozen=True)
class BNMode:
    """Which statistics a batch normalisation uses and what it writes to `batch_stats`.

    Attributes:
      use_batch: normalise with the statistics of the mini-batch rather than with the stored ones.
      momentum: of the stored ones, which move by the rest of it towards the mini-batch's; 0 stores
        the mini-batch's own. None stores nothing.
    """

    use_batch: bool
    momentum: float | None


BN_TRAIN = BNMode(use_batch=True, momentum=0.9)
BN_RUNNING = BNMode(use_batch=False, momentum=None)
BN_BATCH = BNMode(use_batch=True, momentum=None)
BN_COLLECT = BNMode(use_batch=True, momentum=0.0)


class BatchNorm(nn.Module):
    """Batch normalisation over the global mini-batch, images of weight 0 left out.

    Under `jit` with the batch sharded over devices the means below are global, which makes this
    synchronised batch normalisation. Statistics are float32 and the variance is biased.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        mode: BNMode,
        weight: Float[Array, " batch"],
    ):
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        used_mean, used_var = mean.value, var.value
        if mode.use_batch:
            # A mini-batch of padding alone says nothing.
            counts = (weight > 0).any()
            used_mean, used_var = (
                jnp.where(counts, own, stored)
                for own, stored in zip(_moments(x, weight), (used_mean, used_var), strict=True)
            )
        if mode.momentum is not None and not self.is_initializing():
            kept = mode.momentum
            mean.value = kept * mean.value + (1 - kept) * lax.stop_gradient(used_mean)
            var.value = kept * var.value + (1 - kept) * lax.stop_gradient(used_var)
        factor = scale * lax.rsqrt(used_var + self.epsilon)
        return (x * factor + (bias - used_mean * factor)).astype(x.dtype)


def conv_bn(
    x: Float[Array, "batch height width channels"],
    features: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
    *,
    mode: BNMode,
    weight: Float[Array, " batch"],
    name: str = "",
    prefix: str = "",
    dilations: tuple[int, ...] = (1,),
    operation: Int[Array, ""] | int = 0,
    in_control_flow: bool = False,
):
    """A convolution and its batch normalisation, submodules of the module that is being called.

    They are named `<prefix>conv<name>` and `<prefix>bn<name>`; see `Conv` for the rest.
    """
    conv = Conv(
        features,
        size,
        stride,
        dilations,
        groups,
        in_control_flow=in_control_flow,
        name=f"{prefix}conv{name}",
    )
    return BatchNorm(name=f"{prefix}bn{name}")(conv(x, operation), mode, weight)


def _moments(x, weight):
    """Mean and biased variance of each channel over the images of weight above 0, float32."""
    weight = (weight > 0).astype(jnp.float32)
    number = jnp.maximum(weight.sum(), 1.0)
    x = x.astype(jnp.float32)
    # Means within an image first: the order of summation, and so the rounding, is the same however
    # the batch is laid over devices.
    mean = (x.mean((1, 2)) * weight[:, None]).sum(0) / number
    centred = jnp.square(x - mean).mean((1, 2))
    return mean, (centred * weight[:, None]).sum(0) / number
