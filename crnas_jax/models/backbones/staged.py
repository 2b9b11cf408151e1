"""Backbones of stages: the walk of stem, stages and tail, and the stand-alone network's module."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from crnas_jax.arch import Architecture
from crnas_jax.arch.families import BlockShape
from crnas_jax.arch.staged import Arch, Part
from crnas_jax.models.backbones.mobilenet_v2 import MobileNetLayer, inverted_residual_block
from crnas_jax.models.backbones.resnet import Stem, residual_block
from crnas_jax.models.layers import Normalization, conv_bn
from crnas_jax.runtime.options import check_choice


@dataclasses.dataclass(frozen=True)
class Design:
    """The Flax layers of a family.

    Attributes:
      stem: module of the stem.
      block: function that applies a block, see `residual_block`.
      tail: module of the tail, None where there is none.
    """

    stem: type[nn.Module]
    block: Callable
    tail: type[nn.Module] | None = None


# By `Family.design`.
_DESIGNS = {
    "resnet": Design(Stem, residual_block),
    "mobilenet_v2": Design(MobileNetLayer, inverted_residual_block, MobileNetLayer),
}


@dataclasses.dataclass(frozen=True)
class FreezeOptions:
    """What of a backbone is not trained.

    Attributes:
      freeze_at: 0 nothing, 1 the stem, 2 everything up to c2, and so on to 5 (Detectron2's
        `FREEZE_AT`; mmdetection's `frozen_stages` is one less); of a scale-permuted network 1 the
        stem's convolution, 2 the stem, 5 everything. Batch normalisation in it uses its stored
        statistics.
      freeze_norm: scale, bias and statistics of every batch normalisation (torchvision's and
        Detectron2's `FrozenBatchNorm`, mmdetection's `norm_eval` with `requires_grad=False`).
    """

    freeze_at: int = 0
    freeze_norm: bool = False

    def __post_init__(self):
        check_choice(self, "freeze_at", range(6))

    def freezes(self, arch: Architecture, part: str) -> bool:
        """Return whether all of a part is frozen, given its name."""
        return part in arch.frozen_parts(self.freeze_at)

    def freezes_parameter(self, arch: Architecture, path: tuple[str, ...]) -> bool:
        """Return whether the backbone's parameter at `path` keeps its value."""
        is_norm = any("bn" in name for name in path)
        return (self.freeze_norm and is_norm) or self.freezes(arch, path[0])

    def norm(self, arch: Architecture, part: str, norm: Normalization) -> Normalization:
        """Return the normalisation of a part: frozen layers use their stored statistics."""
        if self.freezes(arch, part):  # nothing is left out of it either
            return dataclasses.replace(norm.frozen(), keys=None)
        return norm.frozen() if self.freeze_norm else norm


def end_module(arch: Arch, part: Part, name: str | None = None) -> nn.Module:
    """Return the module of the stem or the tail."""
    design = _DESIGNS[arch.traits.design]
    module = design.stem if part.kind == "stem" else design.tail
    return module(part.units[0], name=name)


class StagedBackbone(nn.Module):
    """Stem, stages and tail of one `Arch`: `stem`, `stage1/block1` .. `stage4/blockN`, `tail`.

    A supernet's backbone (`models.supernet.module`) differs in its stages alone.

    Attributes:
      arch: the architecture.
      remat: recompute blocks in the backward pass instead of storing their inner activations.
      freeze: what is not trained.
    """

    arch: Arch
    remat: bool = False
    freeze: FreezeOptions = FreezeOptions()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width 3"],
        choice: dict[str, ArrayLike] | None,
        norm: Normalization,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the features c2..c5 (strides 4 to 32).

        Args:
          x: normalised images.
          choice: path of a supernet; None for a stand-alone network.
          norm: what normalisation layers need.
        """
        features, norm = [], norm.for_family(self.arch.activation)
        for part in self.arch.parts():
            if part.kind == "stage":
                module, operands = self.stage(part, choice)
            else:
                module, operands = end_module(self.arch, part, part.name), ()
            x = module(
                x, *operands, self.freeze.norm(self.arch, part.name, norm.at(part.stage + 1))
            )
            if self.freeze.freezes(self.arch, part.name):
                x = lax.stop_gradient(x)
            if part.level:
                features.append(x)
        return tuple(features)

    def stage(self, part: Part, choice) -> tuple[nn.Module, tuple]:
        """Return the module of a stage, and its operands between features and normalisation."""
        del choice  # a stand-alone network has one path
        dilations = self.arch.stage_dilations()[part.stage]
        return Stage(self.arch, part, dilations, self.remat, name=part.name), ()


class Block(nn.Module):
    """One block; `operation` picks the dilation of its searched 3x3 convolution, `conv2`.

    Attributes:
      design: key of the family's layers.
      shape: shape of the block.
      dilations: candidates for `conv2`: a bottleneck's centre, a basic block's second, an inverted
        residual's depthwise convolution.
      in_control_flow: see `ops.convolution.ConvSpec`.
      level: level of its output, for DropBlock.
    """

    design: str
    shape: BlockShape
    dilations: tuple[int, ...] = (1,)
    in_control_flow: bool = False
    level: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        operation: Int[ArrayLike, ""],
        norm: Normalization,
    ) -> Float[Array, "batch _ _ _"]:
        def layer(x, shape):
            searched = (self.dilations, operation) if shape.name == "2" else ()
            x = conv_bn(x, shape, norm, *searched, in_control_flow=self.in_control_flow)
            # The expansion before a strided convolution still has the finer level.
            is_finer = shape.name == "1" and shape.stride < self.shape.stride
            return norm.at(int(shape.name or 0)).drop_block(x, self.level - is_finer)

        return _DESIGNS[self.design].block(x, self.shape, layer, norm)


class Stage(nn.Module):
    """The blocks of one stage of a stand-alone network.

    Attributes:
      arch: the architecture.
      part: the stage.
      dilations: dilation of each block's searched convolution.
      remat: see `StagedBackbone`.
    """

    arch: Arch
    part: Part
    dilations: tuple[int, ...]
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], norm: Normalization
    ) -> Float[Array, "batch _ _ _"]:
        block_class = nn.remat(Block) if self.remat else Block
        blocks = zip(self.part.units, self.dilations, strict=True)
        for index, (shape, dilation) in enumerate(blocks, 1):
            design, level = self.arch.traits.design, self.part.resolution
            block = block_class(design, shape, (dilation,), level=level, name=f"block{index}")
            x = block(x, jnp.int32(0), norm.at(index))
        return x
