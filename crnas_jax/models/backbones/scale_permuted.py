"""Scale-permuted backbones: SpineNet (arXiv 1912.05027) and its mobile form.

Parameters stand by place: `stem` (the first convolution), `block0`, `block1`, .. (stem blocks and
permuted blocks as the architecture counts them), `endpoint3`, .. (a 1x1 convolution behind the
output of each level). A block holds `resample0` and `resample1`, the way from its two parents, and
`repeat1`, `repeat2`, .., its repeats.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from crnas_jax.arch.families import BlockShape, ConvShape
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.scale_shapes import Node, ResampleShape
from crnas_jax.models.backbones.mobilenet_v2 import inverted_residual_block
from crnas_jax.models.backbones.resnet import Stem, residual_block
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.layers import Normalization, conv_bn, fan_in_normal
from crnas_jax.models.necks.fpn import resize_nearest

_BLOCKS = {
    "bottleneck": residual_block,
    "basic": residual_block,
    "inverted": inverted_residual_block,
}


class ScalePermutedBackbone(nn.Module):
    """Stem, permuted blocks and endpoints of a `ScalePermuted`.

    Attributes:
      arch: the architecture.
      remat: recompute blocks in the backward pass instead of storing their inner activations.
      freeze: what is not trained.
    """

    arch: ScalePermuted
    remat: bool = False
    freeze: FreezeOptions = FreezeOptions()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width 3"],
        choice: dict[str, ArrayLike] | None,
        norm: Normalization,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the pyramid, finest level first; level l has ceil(side / 2^l) cells a side.

        Args:
          x: normalised images.
          choice: path of a supernet; None for a stand-alone network.
          norm: what normalisation layers need.
        """
        norm = norm.for_family(self.arch.activation)
        canvas = x.shape[1:3]

        def run(module, *operands):
            y = module(*operands, self.freeze.norm(self.arch, module.name, norm))
            return lax.stop_gradient(y) if self.freeze.freezes(self.arch, module.name) else y

        x = run(Stem(self.arch.stem_shape, fan_in_normal, name="stem"), x)
        outputs, endpoints = [], {}
        for node in self.arch.nodes():
            size = tuple(-(-side // 2**node.level) for side in canvas)
            block, read, operands = self.block(node, size, choice)
            # A block of the stem reads the one before it.
            inputs = (x,) if node.place is None else tuple(outputs[index] for index in read)
            x = run(block, inputs, *operands)
            outputs.append(x)
            if node.is_output:
                endpoint = Endpoint(self.arch.endpoint(node), name=f"endpoint{node.level}")
                endpoints[node.level] = run(endpoint, x)
        return tuple(endpoints[level] for level in self.arch.levels)

    def block(
        self, node: Node, size: tuple[int, int], choice
    ) -> tuple[nn.Module, tuple[int, ...], tuple]:
        """Return the module of a block, the blocks that it reads, and what else it is called with.

        Args:
          node: the block.
          size: (height, width) of its output.
          choice: path of a supernet, in which these blocks may be others; None for a network.
        """
        del choice  # a stand-alone network has one path
        block_class = nn.remat(ScaleBlock) if self.remat else ScaleBlock
        block = block_class(node, size, self.depth(node), (node.dilation,), name=node.name)
        read = tuple(resample.parent for resample in node.resamples) + node.extras
        return block, read, (jnp.int32(0),)

    def depth(self, node: Node) -> float:
        """Return the place of a block among the permuted ones, 0..1; 0 in the stem."""
        return 0.0 if node.place is None else (node.place + 1) / len(self.arch.blocks)


class Endpoint(nn.Module):
    """A 1x1 convolution, batch normalisation, activation."""

    shape: ConvShape

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width _"], norm: Normalization
    ) -> Float[Array, "batch height width channels"]:
        return norm.activate(conv_bn(x, self.shape, norm, kernel_init=fan_in_normal))


class ScaleBlock(nn.Module):
    """Resampled parents, added and activated, and the repeats of a block.

    Attributes:
      node: the block.
      size: (height, width) of its output.
      depth: its place among the permuted blocks, 0..1, for stochastic depth.
      dilations: candidates for its 3x3 convolutions; those of the resampling have no dilation.
    """

    node: Node
    size: tuple[int, int]
    depth: float = 0.0
    dilations: tuple[int, ...] = (1,)

    @nn.compact
    def __call__(
        self,
        inputs: tuple[Float[Array, "batch _ _ _"], ...],
        operation: Int[ArrayLike, ""],
        norm: Normalization,
    ) -> Float[Array, "batch _ _ _"]:
        """Return the block's output.

        Args:
          inputs: the outputs of its parents, then of the blocks that are added as they are; of a
            stem block the one before.
          operation: index into `dilations`.
          norm: what normalisation layers need.
        """
        x, *others = inputs
        if self.node.resamples:
            merged = others[len(self.node.resamples) - 1 :]
            for index, shape in enumerate(self.node.resamples):
                resample = Resample(shape, self.size, name=f"resample{index}")
                merged.append(resample(inputs[index], norm))
            x = norm.activate(sum(merged))
        return self.repeats(Repeat, x, operation, norm)

    def repeats(
        self,
        repeat_class: type[nn.Module],
        x: Float[Array, "batch height width channels"],
        operation: Int[ArrayLike, ""],
        norm: Normalization,
    ) -> Float[Array, "batch _ _ _"]:
        """Apply the repeats, modules of a class with the attributes of `Repeat`, to their input."""
        norm = norm.at(int(self.node.name.removeprefix("block")))
        for number, shape in enumerate(self.node.units, 1):
            name = f"repeat{number}"
            repeat = repeat_class(shape, self.node.level, self.depth, self.dilations, name=name)
            x = repeat(x, operation, norm.at(number))
        return x


class Repeat(nn.Module):
    """One repeat of a block.

    Attributes:
      shape: its shape.
      level: its level.
      depth: see `ScaleBlock`; 0 in the stem, where nothing is left out.
      dilations: see `ScaleBlock`.
    """

    shape: BlockShape
    level: int
    depth: float
    dilations: tuple[int, ...] = (1,)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        operation: Int[ArrayLike, ""],
        norm: Normalization,
    ) -> Float[Array, "batch _ _ _"]:
        def layer(x, shape):
            searched = (self.dilations, operation) if shape.size > 1 else ()
            x = conv_bn(x, shape, norm, *searched, kernel_init=fan_in_normal)
            is_permuted = self.depth > 0
            place = int(shape.name or 0)
            return norm.at(place).drop_block(x, self.level) if is_permuted else x

        return _BLOCKS[self.shape.kind](x, self.shape, layer, norm, self.depth)


class Resample(nn.Module):
    """Bring a parent to the size and channels of a block (paper, section 3.3).

    Attributes:
      shape: convolutions.
      size: (height, width) of the block.
      in_control_flow: see `ops.convolution.ConvSpec`.
    """

    shape: ResampleShape
    size: tuple[int, int]
    in_control_flow: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], norm: Normalization
    ) -> Float[Array, "batch _ _ _"]:
        parent_size, size = x.shape[1:3], self.size
        *convolutions, last = self.shape.convolutions
        form = {"in_control_flow": self.in_control_flow, "kernel_init": fan_in_normal}
        for convolution in convolutions:
            x = norm.activate(conv_bn(x, convolution, norm, **form))
        x = _pooled(x, parent_size, size)
        # Whole factors repeat each cell, which a 1x1 convolution and its normalisation do not see:
        # the same numbers for a quarter of the work or less.
        commutes = all(side % cells == 0 for side, cells in zip(size, x.shape[1:3], strict=True))
        if not commutes:
            x = resize_nearest(x, size)
        x = conv_bn(x, last, norm, **form)
        return resize_nearest(x, size)


def _pooled(x, parent_size, size):
    """Max-pool the axes on which the parent has more than twice the block's cells.

    The 3x3/2 convolution before has halved them once; the mobile form's convolutions have done all.
    By axis as in the release: a kernel of 3 up to a ratio of 4, else of 5; half the ratio as stride
    where the sizes divide, else 2.
    """
    window, strides = [], []
    for parent_side, side, current in zip(parent_size, size, x.shape[1:3], strict=True):
        ratio = parent_side / side
        is_pooled = math.floor(ratio) > 2 and current > side
        stride = math.floor(ratio) // 2 if parent_side % side == 0 else 2
        window.append((3 if ratio <= 4 else 5) if is_pooled else 1)
        strides.append(stride if is_pooled else 1)
    if window == [1, 1]:
        return x
    return nn.max_pool(x, tuple(window), tuple(strides), "SAME")
