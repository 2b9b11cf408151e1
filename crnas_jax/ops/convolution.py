"""Convolution with a custom gradient, and with faster forms of the same numbers on the CPU.

Measured on two CPU cores with jax 0.10: the compiler's kernel gradient of a convolution is 15 to 37
times slower inside `scan`, `switch` or `cond` than outside, and 1x1, depthwise and grouped
convolutions are 5 to 35 times slower than the same numbers as matrix products of shifted inputs.
GPU and TPU get the compiler's forms.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """Static parameters of a convolution; the padding is (k - 1) / 2 * dilation on both sides.

    Attributes:
      stride: step between outputs, in cells of the input, on both axes.
      dilation: step between the kernel's taps, in cells of the input, on both axes.
      groups: number of groups of channels.
      in_control_flow: whether the call stands inside a scan or a conditional, where the CPU needs
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
    """Convolve with the padding of `ConvSpec`, which is torch's.

    Args:
      x: input, [batch, height, width, channels].
      kernel: weights, [k, k, channels / groups, features].
      spec: stride, dilation and groups.
    """
    return _switched_conv(x, kernel, jnp.int32(0), (spec,))


def switched_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "k k group_channels features"],
    operation: Int[Array, ""],
    specs: tuple[ConvSpec, ...],
) -> Float[Array, "batch _ _ features"]:
    """Convolve by the spec that `operation` picks; the others are not computed.

    The switch is inside the custom gradient, so the residuals are one input and one kernel whatever
    the number of operations. Differentiation through `lax.switch` would keep those of every branch.

    Args:
      x: input, [batch, height, width, channels].
      kernel: weights, [k, k, channels / groups, features].
      operation: index into `specs`, int32 scalar; out of range it is clamped.
      specs: convolutions to choose from, with outputs of equal shape.
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
    compiler = functools.partial(_compiler_conv, spec=spec)
    if not _has_tap_form(kernel, spec):  # one form for all: half of the tracing
        return compiler(x, kernel)
    cpu = functools.partial(_tap_conv, spec=spec)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=compiler)


def _backward(x, kernel, gradient, spec):
    def compiler(x, kernel, gradient):
        return jax.vjp(functools.partial(_compiler_conv, spec=spec), x, kernel)[1](gradient)

    def cpu(x, kernel, gradient):
        conv = _tap_conv if _has_tap_form(kernel, spec) else _compiler_conv
        dx = jax.vjp(lambda x: conv(x, kernel, spec), x)[1](gradient)[0]
        return dx, _tap_kernel_gradient(x, kernel, gradient, spec)

    if not (_has_tap_form(kernel, spec) or spec.in_control_flow):
        return compiler(x, kernel, gradient)
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


def _has_tap_form(kernel, spec):
    """Return whether the sum over taps is the faster form of this convolution on the CPU."""
    return kernel.shape[0] == 1 or spec.groups > 1


def _taps(x, kernel, spec):
    """Yield each tap of the kernel with its input, [batch, out height, out width, channels]."""
    size = kernel.shape[0]
    pad = spec.dilation * (size - 1) // 2
    out_shape = [
        (side + 2 * pad - spec.dilation * (size - 1) - 1) // spec.stride + 1
        for side in x.shape[1:3]
    ]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x
    for row in range(size):
        for column in range(size):
            start = (0, row * spec.dilation, column * spec.dilation, 0)
            ends = [
                first + (num_outputs - 1) * spec.stride + 1
                for first, num_outputs in zip(start[1:3], out_shape, strict=True)
            ]
            limit = (x.shape[0], *ends, x.shape[3])
            yield (row, column), lax.slice(x, start, limit, (1, spec.stride, spec.stride, 1))


def _grouped(array, groups):
    return array.reshape(*array.shape[:-1], groups, array.shape[-1] // groups)


def _tap_conv(x, kernel, spec):
    """Sum matrix products over the taps, or multiply-adds where the convolution is depthwise."""
    total = None
    for tap, shifted in _taps(x, kernel, spec):
        weights = kernel[tap]
        if spec.groups == 1:
            part = jnp.einsum("bhwi,io->bhwo", shifted, weights)
        elif weights.shape == (1, x.shape[-1]):
            part = shifted * lax.broadcast_to_rank(weights[0], shifted.ndim)
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
