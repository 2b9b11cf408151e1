"""The layers that every network here is built of: one convolution, one batch normalisation."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, UInt8

from crnas_jax.arch.families import ConvShape
from crnas_jax.ops.convolution import ConvSpec, switched_conv

# Kernel initialisation of torchvision's backbones: He normal over the fan out.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Name of convolution outputs in policies of `jax.checkpoint`.
CONV_OUTPUT = "conv_output"
# Mean and deviation of ImageNet's training images, RGB, for values of 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# What batch normalisation adds to the variance.
EPSILON = 1e-5


def preprocess(
    image: UInt8[Array, "batch height width 3"],
    image_size: Int[Array, "batch 2"],
    dtype: DTypeLike,
) -> Float[Array, "batch height width 3"]:
    """Normalise RGB uint8 by ImageNet's statistics to `dtype`; 0 on the canvas beside the image."""
    mean, std = (per_channel(jnp.array(values)) for values in (MEAN, STD))
    x = (image.astype(jnp.float32) / 255 - mean) / std
    inside_rows = jnp.arange(image.shape[1])[None, :] < image_size[:, :1]
    inside_columns = jnp.arange(image.shape[2])[None, :] < image_size[:, 1:]
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[..., None]
    return jnp.where(inside, x, 0).astype(dtype)


class Conv(nn.Module):
    """A square convolution; with several `dilations` the call's `operation` picks one.

    It computes in the dtype of its input; parameters are float32.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: stride of the output.
      dilations: candidate dilations.
      groups: number of channel groups.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel.
      in_control_flow: whether the call stands inside a scan or conditional
        (`convolution.ConvSpec`).
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
        self, x: Float[Array, "batch height width channels"], operation: Int[ArrayLike, ""] = 0
    ) -> Float[Array, "batch _ _ features"]:
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
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += per_channel(bias.astype(y.dtype))
        return y


class Upsampling(nn.Module):
    """Transposed 2x2 convolution of stride 2: four products, each cell's own.

    `kernel` is [2, 2, in, out]; its [a, b] makes the output cells (2 i + a, 2 j + b).
    """

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "rois height width channels"]
    ) -> Float[Array, "rois _ _ features"]:
        shape = (2, 2, x.shape[-1], self.features)
        kernel = self.param("kernel", kaiming_normal, shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        y = jnp.einsum("rhwi,abio->rhawbo", x, kernel)
        y = y.reshape(len(x), 2 * x.shape[1], 2 * x.shape[2], self.features)
        return y + per_channel(bias)


def per_channel(vector: Float[Array, " channels"]) -> Float[Array, "1 1 1 channels"]:
    """Add the axes with which a value for each channel is applied to a feature map."""
    return vector[None, None, None]


@dataclasses.dataclass(frozen=True)
class BNMode:
    """Which statistics a batch normalisation uses and what it writes to `batch_stats`.

    Attributes:
      use_batch: normalise with the statistics of the mini-batch rather than with the stored ones.
      momentum: share of the stored statistics that stays; the rest comes from the mini-batch. 0
        stores the mini-batch's statistics, None stores nothing.
    """

    use_batch: bool
    momentum: float | None


BN_TRAIN = BNMode(use_batch=True, momentum=0.9)
BN_RUNNING = BNMode(use_batch=False, momentum=None)
BN_BATCH = BNMode(use_batch=True, momentum=None)
BN_COLLECT = BNMode(use_batch=True, momentum=0.0)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("image_weight",), meta_fields=("mode", "epsilon")
)
@dataclasses.dataclass(frozen=True)
class Normalization:
    """What the normalisation layers of a network need; it travels through all modules as one value.

    Attributes:
      mode: statistics that are used and stored.
      image_weight: float32 [batch]; images of weight 0 are padding.
      epsilon: added to the variance.
    """

    mode: BNMode
    image_weight: Any  # an array, or what JAX puts in its place in a tree
    epsilon: float = EPSILON

    def frozen(self) -> "Normalization":
        """Return the same for layers that use their stored statistics and do not move them."""
        return dataclasses.replace(self, mode=BN_RUNNING)


class BatchNorm(nn.Module):
    """Batch normalisation over the global mini-batch, images of weight 0 left out.

    Under `jit` with the batch sharded over devices the means below are global, which makes this
    synchronised batch normalisation. Statistics are float32 and the variance is biased.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], norm: Normalization
    ) -> Float[Array, "batch height width channels"]:
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        used_mean, used_var = mean.value, var.value
        if norm.mode.use_batch:
            # A mini-batch of padding alone has no statistics.
            any_image = (norm.image_weight > 0).any()
            used_mean, used_var = (
                jnp.where(any_image, batch_value, stored)
                for batch_value, stored in zip(
                    _moments(x, norm.image_weight), (used_mean, used_var), strict=True
                )
            )
        if norm.mode.momentum is not None and not self.is_initializing():
            momentum = norm.mode.momentum
            mean.value = momentum * mean.value + (1 - momentum) * lax.stop_gradient(used_mean)
            var.value = momentum * var.value + (1 - momentum) * lax.stop_gradient(used_var)
        factor = scale * lax.rsqrt(used_var + norm.epsilon)
        return (x * per_channel(factor) + per_channel(bias - used_mean * factor)).astype(x.dtype)


def conv_bn(
    x: Float[Array, "batch height width channels"],
    shape: ConvShape,
    norm: Normalization,
    dilations: tuple[int, ...] = (1,),
    operation: Int[ArrayLike, ""] = 0,
    in_control_flow: bool = False,
) -> Float[Array, "batch _ _ features"]:
    """Apply a convolution and its batch normalisation, submodules of the calling module.

    They are named `<prefix>conv<name>` and `<prefix>bn<name>`; see `Conv` for the last three
    arguments.
    """
    conv = Conv(
        shape.out_channels,
        shape.size,
        shape.stride,
        dilations,
        shape.groups,
        in_control_flow=in_control_flow,
        name=f"{shape.prefix}conv{shape.name}",
    )
    return BatchNorm(name=f"{shape.prefix}bn{shape.name}")(conv(x, operation), norm)


def _moments(x, image_weight):
    """Return mean and biased variance of each channel over images of weight above 0, float32."""
    weight = (image_weight > 0).astype(jnp.float32)
    num_images = jnp.maximum(weight.sum(), 1.0)
    x = x.astype(jnp.float32)
    # Means within an image first: the order of summation, and so the rounding, is the same however
    # the batch is laid over devices.
    mean = (x.mean((1, 2)) * weight[:, None]).sum(0) / num_images
    centred = jnp.square(x - per_channel(mean)).mean((1, 2))
    return mean, (centred * weight[:, None]).sum(0) / num_images
