"""The stand-alone backbone of an architecture, and what it shares with the supernet."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from crnas_jax.arch.families import BlockShape
from crnas_jax.arch.staged import Arch
from crnas_jax.models.backbones.mobilenet_v2 import MobileNetStem, MobileNetTail, inverted_residual
from crnas_jax.models.backbones.resnet import ResNetStem, residual
from crnas_jax.models.layers import BN_RUNNING, BNMode, conv_bn


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What of a backbone is not trained.

    Attributes:
      stages: 0 nothing, 1 the stem, 2 everything up to c2, and so on to 5 (Detectron2's
        `FREEZE_AT`; mmdetection's `frozen_stages` is one less). Batch normalisation in it uses its
        stored statistics.
      norm: scale, bias and statistics of every batch normalisation (torchvision's and Detectron2's
        `FrozenBatchNorm`, mmdetection's `norm_eval` with `requires_grad=False`).
    """

    stages: int = 0
    norm: bool = False

    def last_stage(self, arch: Arch) -> int:
        """The last frozen stage (0-based); -1 for the stem alone, -2 for nothing."""
        return ([-2, -1, *arch.traits.levels])[self.stages]

    def holds(self, arch: Arch, names: tuple[str, ...]) -> bool:
        """Whether a parameter of the backbone with this path stays as it is."""
        if self.norm and any("bn" in name for name in names):
            return True
        if names[0] == "stem":
            return self.stages > 0
        last = self.last_stage(arch)
        if names[0] == "tail":
            return last == len(arch.widths) - 1
        return int(names[0].removeprefix("stage")) - 1 <= last


class Backbone(nn.Module):
    """Stem, stages, tail of one `Arch`: `stem`, `stage1/block1` .. `stage4/blockN`, `tail`.

    `Supernet` is one with other stages.

    Attributes:
      spec: the architecture.
      remat: recompute blocks in the backward pass instead of keeping what is inside them.
      frozen: see `Frozen`.
    """

    spec: Arch
    remat: bool = False
    frozen: Frozen = Frozen()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width 3"],
        choice: dict[str, Array] | None,
        mode: BNMode,
        weight: Float[Array, " batch"],
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Features c2..c5 (strides 4 to 32).

        Args:
          x: normalised images.
          choice: a supernet's path; None of a stand-alone network.
          mode: of batch normalisation.
          weight: of the images.
        """
        arch = self.arch
        inverted = arch.traits.block == "inverted"
        last = self.frozen.last_stage(arch)

        def run(module, x, stage, *operands):
            """A part of the network; what is frozen passes no gradient and moves no statistics."""
            held = stage <= last
            x = module(x, *operands, BN_RUNNING if held or self.frozen.norm else mode, weight)
            return lax.stop_gradient(x) if held else x

        stem = MobileNetStem if inverted else ResNetStem
        x = run(stem(arch.stem_channels, name="stem"), x, -1)
        features = []
        for stage in range(len(arch.widths)):
            module = self.make_stage(stage, f"stage{stage + 1}")
            x = run(module, x, stage, *self.stage_operands(choice, stage))
            if stage == len(arch.widths) - 1 and arch.tail_channels:
                x = run(MobileNetTail(arch.tail_channels, name="tail"), x, stage)
            if stage in arch.traits.levels:
                features.append(x)
        return tuple(features)

    @property
    def arch(self) -> Arch:
        """Whose widths, strides and levels these are."""
        return self.spec

    def make_stage(self, stage: int, name: str) -> nn.Module:
        """The module of a stage."""
        dilations = self.spec.stage_dilations()[stage]
        return Stage(self.spec, stage, dilations, self.remat, name=name)

    def stage_operands(self, choice, stage: int) -> tuple:
        """What it takes beside its input."""
        del choice, stage
        return ()


class Block(nn.Module):
    """One block; `operation` picks the dilation of its searched 3x3 convolution, `conv2`.

    Attributes:
      shape: of the block.
      dilations: candidates of `conv2`: a bottleneck's centre, a basic block's second, an inverted
        residual's depthwise one.
      in_control_flow: see `ops.convolution.ConvSpec`.
    """

    shape: BlockShape
    dilations: tuple[int, ...] = (1,)
    in_control_flow: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        operation: Int[Array, ""] | int,
        mode: BNMode,
        weight: Float[Array, " batch"],
    ):
        layer = functools.partial(
            conv_bn, mode=mode, weight=weight, in_control_flow=self.in_control_flow
        )
        searched = functools.partial(layer, name="2", dilations=self.dilations, operation=operation)
        run = inverted_residual if self.shape.kind == "inverted" else residual
        return run(x, self.shape, layer, searched)


class Stage(nn.Module):
    """The blocks of one stage."""

    arch: Arch
    stage: int
    dilations: tuple[int, ...]
    remat: bool

    @nn.compact
    def __call__(self, x, mode: BNMode, weight):
        # Of (self, x, operation, mode, weight) the mode is no array.
        kind = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        for index, dilation in enumerate(self.dilations):
            shape = self.arch.block(self.stage, first=index == 0)
            block = kind(shape, (dilation,), name=f"block{index + 1}")
            x = block(x, jnp.int32(0), mode, weight)
        return x
