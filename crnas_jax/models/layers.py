"""The layers every network here is built of: one convolution, one batch normalisation.

Measured on two CPU cores with jax 0.10: the compiler's kernel gradient of a convolution is 15 to 37
times slower inside `scan`, `switch` or `cond` than outside, and 1x1, depthwise and grouped
convolutions are 5 to 35 times slower than the same numbers as matrix products of shifted inputs. So
each convolution carries its own gradient and, on the CPU alone, those forms; GPU and TPU get the
compiler's own.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

# Kernel initialisation of torchvision's backbones: He normal over the fan out.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# The name of convolution outputs in policies of `jax.checkpoint`.
CONV_OUTPUT = "conv_output"
# Of ImageNet's training images, RGB, for values of 0..1.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def preprocess(
    image: Int[Array, "batch height width 3"], image_size: Int[Array, "batch 2"], dtype
) -> Float[Array, "batch height width 3"]:
    """RGB uint8 to ImageNet-normalised `dtype`; 0 on the canvas beside the image."""
    x = (image.astype(jnp.float32) / 255 - jnp.array(_MEAN)) / jnp.array(_STD)
    inside_rows = jnp.arange(image.shape[1])[None, :] < image_size[:, :1]
    inside_columns = jnp.arange(image.shape[2])[None, :] < image_size[:, 1:]
    return jnp.where(
        (inside_rows[:, :, None] & inside_columns[:, None, :])[..., None], x, 0
    ).astype(dtype)


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """What is fixed at compile time; padding is (k - 1) / 2 * dilation on both sides.

    `in_control_flow` says that the call stands inside a scan or a conditional, where the CPU needs
    another form of the kernel gradient; outside, the compiler's is up to twice as fast.
    """

    stride: int = 1
    dilation: int = 1
    groups: int = 1
    in_control_flow: bool = False


def conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "k k group_channels features"],
    spec: ConvSpec,
) -> Float[Array, "batch _ _ features"]:
    """Convolution with torch's padding."""
    return _switched_conv(x, kernel, jnp.int32(0), (spec,))


def switched_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "k k group_channels features"],
    operation: Int[Array, ""],
    specs: tuple[ConvSpec, ...],
) -> Float[Array, "batch _ _ features"]:
    """The convolution that `operation` picks out of `specs`; the others are not computed.

    The switch is inside the custom gradient, so the residuals are one input and one kernel whatever
    the number of operations. Differentiating through `lax.switch` would keep those of every branch.
    """
    return _switched_conv(x, kernel, operation, specs)


def _pick(operation, branches, *operands):
    return (
        branches[0](*operands) if len(branches) == 1 else lax.switch(operation, branches, *operands)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _switched_conv(x, kernel, operation, specs):
    return _pick(operation, [functools.partial(_forward, spec=spec) for spec in specs], x, kernel)


def _switched_conv_fwd(x, kernel, operation, specs):
    return _switched_conv(x, kernel, operation, specs), (x, kernel, operation)


def _switched_conv_bwd(specs, residuals, gradient):
    x, kernel, operation = residuals
    branches = [functools.partial(_backward, spec=spec) for spec in specs]
    return *_pick(operation, branches, x, kernel, gradient), np.zeros((), jax.dtypes.float0)


_switched_conv.defvjp(_switched_conv_fwd, _switched_conv_bwd)


def _forward(x, kernel, spec):
    compiler, cpu = (
        functools.partial(_compiler_conv, spec=spec),
        functools.partial(_cpu_conv, spec=spec),
    )
    return lax.platform_dependent(x, kernel, cpu=cpu, default=compiler)


def _backward(x, kernel, gradient, spec):
    def compiler(x, kernel, gradient):
        return jax.vjp(functools.partial(_compiler_conv, spec=spec), x, kernel)[1](gradient)

    def cpu(x, kernel, gradient):
        if not (_has_tap_form(kernel, spec) or spec.in_control_flow):
            return compiler(x, kernel, gradient)
        dx = jax.vjp(lambda x: _cpu_conv(x, kernel, spec), x)[1](gradient)[0]
        return dx, _tap_kernel_gradient(x, kernel, gradient, spec)

    return lax.platform_dependent(x, kernel, gradient, cpu=cpu, default=compiler)


def _compiler_conv(x, kernel, spec):
    pad = spec.dilation * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(spec.stride, spec.stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(spec.dilation, spec.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )


def _cpu_conv(x, kernel, spec):
    return (_tap_conv if _has_tap_form(kernel, spec) else _compiler_conv)(x, kernel, spec)


def _has_tap_form(kernel, spec):
    """Whether the sum over taps is the faster form of this convolution on the CPU."""
    return kernel.shape[0] == 1 or spec.groups > 1


def _taps(x, kernel, spec):
    """For each tap of the kernel the input it meets, [batch, out height, out width, channels]."""
    size = kernel.shape[0]
    pad = spec.dilation * (size - 1) // 2
    out = [
        (side + 2 * pad - spec.dilation * (size - 1) - 1) // spec.stride + 1
        for side in x.shape[1:3]
    ]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x
    for row in range(size):
        for column in range(size):
            start = (0, row * spec.dilation, column * spec.dilation, 0)
            reach = [
                first + (number - 1) * spec.stride + 1
                for first, number in zip(start[1:3], out, strict=True)
            ]
            limit = (x.shape[0], *reach, x.shape[3])
            yield (row, column), lax.slice(x, start, limit, (1, spec.stride, spec.stride, 1))


def _grouped(array, groups):
    return array.reshape(*array.shape[:-1], groups, array.shape[-1] // groups)


def _tap_conv(x, kernel, spec):
    """Sum over taps of matrix products; a multiply-add where the convolution is depthwise."""
    total = None
    for tap, shifted in _taps(x, kernel, spec):
        weights = kernel[tap]
        if spec.groups == 1:
            part = jnp.einsum("bhwi,io->bhwo", shifted, weights)
        elif weights.shape == (1, x.shape[-1]):
            part = shifted * weights[0]
        else:
            part = jnp.einsum(
                "bhwgi,igo->bhwgo", _grouped(shifted, spec.groups), _grouped(weights, spec.groups)
            )
            part = part.reshape(*part.shape[:3], -1)
        total = part if total is None else total + part
    return total


def _tap_kernel_gradient(x, kernel, gradient, spec):
    parts = []
    for _, shifted in _taps(x, kernel, spec):
        if spec.groups == 1:
            part = jnp.einsum("bhwi,bhwo->io", shifted, gradient)
        elif kernel.shape[2:] == (1, x.shape[-1]):
            part = (shifted * gradient).sum((0, 1, 2))[None]
        else:
            part = jnp.einsum(
                "bhwgi,bhwgo->igo", _grouped(shifted, spec.groups), _grouped(gradient, spec.groups)
            )
            part = part.reshape(*part.shape[:1], -1)
        parts.append(part)
    return jnp.stack(parts).reshape(kernel.shape)


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
      in_control_flow: see `ConvSpec`.
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
