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
from crnas_jax.ops import drop
from crnas_jax.ops.convolution import ConvSpec, switched_conv
from crnas_jax.runtime.options import (
    check_below_one,
    check_choice,
    check_counts,
    check_not_negative,
    check_positive,
)

# Kernel initialisation of torchvision's backbones: He normal over the fan out.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# SpineNet's release: variance 1 over the fan in.
fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
# Name of convolution outputs in policies of `jax.checkpoint`.
CONV_OUTPUT = "conv_output"
# Mean and deviation of ImageNet's training images, RGB, for values of 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "swish": nn.swish}
# Levels at which DropBlock drops (ours for SpineNet, whose paper is silent; conv3 and conv4 of a
# ResNet in DropBlock's).
_DROP_BLOCK_LEVELS = (4, 5)


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """What the layers of a network have in common.

    Attributes:
      activation: one of `ACTIVATIONS`; "" for the backbone family's own.
      bn_momentum: share of the stored statistics that stays in a training step.
      bn_epsilon: what batch normalisation adds to the variance.
      stochastic_depth: share of the images that lose the residual branch of a scale-permuted
        network's last block (arXiv 1603.09382); it rises linearly from the first permuted block.
      drop_block: share of cells that DropBlock drops at levels 4 and 5 at the end of the training
        (arXiv 1810.12890); it rises linearly from 0.
      drop_block_size: side of the dropped blocks, cells; at most that of the map.
    """

    activation: str = ""
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    stochastic_depth: float = 0.0
    drop_block: float = 0.0
    drop_block_size: int = 7

    def __post_init__(self):
        check_choice(self, "activation", ("", *ACTIVATIONS))
        check_positive(self, "bn_epsilon")
        for name in ("bn_momentum", "stochastic_depth", "drop_block"):
            check_not_negative(self, name)
            check_below_one(self, name)
        check_counts(self, "drop_block_size")

    @property
    def drops(self) -> bool:
        """Whether a training step draws what is left out."""
        return self.stochastic_depth > 0 or self.drop_block > 0


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
      bias_init: initialiser of the bias.
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
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
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
            bias = self.param("bias", self.bias_init, (self.features,))
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
    jax.tree_util.register_dataclass,
    data_fields=("image_weight", "keys", "progress"),
    meta_fields=("mode", "layers"),
)
@dataclasses.dataclass(frozen=True)
class Normalization:
    """What the layers of a network need beside their input; it travels as one value.

    Attributes:
      mode: statistics that are used and stored.
      image_weight: float32 [batch]; images of weight 0 are padding.
      layers: activation, epsilon, and what is left out in training.
      keys: a key for each image, with which that is drawn; None where nothing is left out.
      progress: float32 [batch], share of the training that is done.
    """

    mode: BNMode
    image_weight: Any  # an array, or what JAX puts in its place in a tree
    layers: LayerOptions = LayerOptions()
    keys: Any = None
    progress: Any = None

    def frozen(self) -> "Normalization":
        """Return the same for layers that use their stored statistics and do not move them."""
        return dataclasses.replace(self, mode=BN_RUNNING)

    def for_family(self, activation: str) -> "Normalization":
        """Return the same with a backbone family's activation where none is asked for."""
        if self.layers.activation:
            return self
        return dataclasses.replace(
            self, layers=dataclasses.replace(self.layers, activation=activation)
        )

    def at(self, place: Int[ArrayLike, ""]) -> "Normalization":
        """Return the same with keys of its own, for one of several parts of a module."""
        if self.keys is None:
            return self
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, place)
        return dataclasses.replace(self, keys=keys)

    def activate(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Apply the activation."""
        return ACTIVATIONS[self.layers.activation](x)

    def drop_path(
        self, branch: Float[Array, "batch height width channels"], depth: float
    ) -> Float[Array, "batch height width channels"]:
        """Apply stochastic depth to a residual branch; `depth` is the block's place, 0..1."""
        rate = depth * self.layers.stochastic_depth
        if self.keys is None or not rate:
            return branch
        kept = jax.vmap(functools.partial(jax.random.bernoulli, p=1 - rate))(self.keys)
        return drop.drop_path(branch, kept, rate)

    def drop_block(
        self, x: Float[Array, "batch height width channels"], level: int
    ) -> Float[Array, "batch height width channels"]:
        """Apply DropBlock to the features of a level."""
        if self.keys is None or not self.layers.drop_block or level not in _DROP_BLOCK_LEVELS:
            return x
        _, *size, channels = x.shape
        block = tuple(min(side, self.layers.drop_block_size) for side in size)
        shape = (size[0] - block[0] + 1, size[1] - block[1] + 1, channels)
        rate = drop.drop_block_rate(self.layers.drop_block * self.progress, tuple(size), block)
        draw = functools.partial(jax.random.bernoulli, shape=shape)
        return drop.drop_block(x, jax.vmap(draw)(self.keys, rate))


def normalization(
    batch: dict[str, Array], mode: BNMode, layers: LayerOptions, keys: Array | None = None
) -> Normalization:
    """Return what the layers need for a mini-batch.

    Args:
      batch: the mini-batch: `weight`, and in training perhaps `progress`, both float32 [batch].
      mode: statistics that are used and stored.
      layers: what the layers have in common.
      keys: a key for each image in training; None elsewhere.
    """
    if keys is None or not layers.drops:
        return Normalization(mode, batch["weight"], layers)
    progress = batch.get("progress", jnp.ones_like(batch["weight"]))
    return Normalization(mode, batch["weight"], layers, keys, progress)


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
        factor = scale * lax.rsqrt(used_var + norm.layers.bn_epsilon)
        return (x * per_channel(factor) + per_channel(bias - used_mean * factor)).astype(x.dtype)


def conv_bn(
    x: Float[Array, "batch height width channels"],
    shape: ConvShape,
    norm: Normalization,
    dilations: tuple[int, ...] = (1,),
    operation: Int[ArrayLike, ""] = 0,
    in_control_flow: bool = False,
    kernel_init: nn.initializers.Initializer = kaiming_normal,
) -> Float[Array, "batch _ _ features"]:
    """Apply a convolution and its batch normalisation, submodules of the calling module.

    They are named `<prefix>conv<name>` and `<prefix>bn<name>`; see `Conv` for the last four
    arguments.
    """
    conv = Conv(
        shape.out_channels,
        shape.size,
        shape.stride,
        dilations,
        shape.groups,
        kernel_init=kernel_init,
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
