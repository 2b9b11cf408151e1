"""RetinaNet's head (arXiv 1708.02002) in three forms: torchvision's two and SpineNet's.

A tower of convolutions for the classes and one for the boxes, the same on all levels, and a
predictor behind each. The forms differ in normalisation, anchors, matching and losses.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from crnas_jax.arch import Architecture, zoo
from crnas_jax.arch.cost.detectors import NUM_RETINA_ANCHORS, RETINA_HEADS
from crnas_jax.models.layers import BatchNorm, Conv, Normalization
from crnas_jax.runtime.options import (
    check_below_one,
    check_choice,
    check_counts,
    check_fractions,
    check_not_negative,
    check_positive,
)

# Probability of every class at every anchor before training.
_PRIOR = 0.01
# Of torchvision's second form.
NUM_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class HeadForm:
    """What tells the forms of the head apart.

    Attributes:
      negative_iou: anchors with a lower IoU are negative, those up to 1/2 neither.
      gamma: the focal loss's exponent.
      box_loss: `l1`, `giou` or `huber`.
      predictor_std: standard deviation of the predictors' first kernels.
      num_candidates: candidates that enter suppression.
      is_by_level: whether these are each level's, not all levels'.
    """

    negative_iou: float
    gamma: float
    box_loss: str
    predictor_std: float
    num_candidates: int
    is_by_level: bool


_FORMS = {
    "torchvision": HeadForm(0.4, 2.0, "l1", 0.01, 1000, True),
    "torchvision_v2": HeadForm(0.4, 2.0, "giou", 0.01, 1000, True),
    "spinenet": HeadForm(0.5, 1.5, "huber", 1e-5, 5000, False),
}


@dataclasses.dataclass(frozen=True)
class RetinaHeadOptions:
    """Settings of RetinaNet's head.

    Attributes:
      form: one of `RETINA_HEADS`.
      num_convolutions: convolutions in each tower; 0 for 4, or in SpineNet's form 7 on the 512
        channels of SpineNet-190 (`for_backbone`).
      separable: whether all convolutions are separable; None for what was published with the
        backbone: in SpineNet's form they are on its mobile one.
      anchor_sizes: side of the smallest anchor for each level, in pixels, finest first; levels that
        the backbone lacks have none.
      label_smoothing: share by which the targets of the classification move to 1/2.
      num_candidates: most candidates that enter suppression, from each level in torchvision's forms
        and from all levels together in SpineNet's; 0 for the form's own number.
      score_threshold: detections must score more.
      nms_iou: IoU threshold of the suppression within a class.
      nms_candidates: candidates that enter it at once: speed and memory alone.
      max_detections: most detections per image.
    """

    form: str = "torchvision"
    num_convolutions: int = 0
    separable: bool | None = None
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    label_smoothing: float = 0.0
    num_candidates: int = 0
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    nms_candidates: int = 1000
    max_detections: int = 100

    def __post_init__(self):
        check_choice(self, "form", RETINA_HEADS)
        check_counts(self, "nms_candidates", "max_detections")
        check_counts(self, "num_convolutions", "num_candidates", least=0)
        check_positive(self, "anchor_sizes")
        check_fractions(self, "score_threshold", "nms_iou")
        check_not_negative(self, "label_smoothing")
        check_below_one(self, "label_smoothing")

    def for_backbone(self, arch: Architecture) -> "RetinaHeadOptions":
        """Return the options with what follows from the backbone."""
        num_convolutions, separable = zoo.published_head(arch, self.form)
        return dataclasses.replace(
            self,
            num_convolutions=self.num_convolutions or num_convolutions,
            separable=separable if self.separable is None else self.separable,
        )

    @property
    def traits(self) -> HeadForm:
        """The form's row."""
        return _FORMS[self.form]


class RetinaHead(nn.Module):
    """Towers and predictors.

    Attributes:
      options: settings.
      channels: channels of the towers.
      num_classes: number of object classes.
    """

    options: RetinaHeadOptions
    channels: int
    num_classes: int

    def setup(self):
        self.towers = Towers(self.options, self.channels)
        self.predictors = Predictors(self.options, self.num_classes)


class Towers(nn.Module):
    """The convolutions before the predictors, on every level.

    Attributes:
      options: settings.
      channels: channels of every convolution.
    """

    options: RetinaHeadOptions
    channels: int

    @nn.compact
    def __call__(
        self, pyramid: tuple[Float[Array, "batch _ _ channels"], ...], norm: Normalization | None
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the class features of every level, then the box features of every level.

        Args:
          pyramid: features of each level, finest first.
          norm: what SpineNet's form needs; torchvision's have no batch normalisation, and ReLU.
        """
        options, outputs = self.options, []
        activate = norm.activate if options.form == "spinenet" else nn.relu
        for tower in ("class", "box"):
            levels = list(pyramid)
            for index in range(1, options.num_convolutions + 1):
                use_bias = options.form != "torchvision_v2"
                conv = _conv(f"{tower}_conv{index}", self.channels, options, 0.01, use_bias)
                norms = [lambda x: x] * len(levels)
                if options.form == "torchvision_v2":
                    norms = [_group_norm(f"{tower}_norm{index}", pyramid[0].dtype)] * len(levels)
                elif options.form == "spinenet":
                    norms = [
                        functools.partial(BatchNorm(name=f"{tower}_bn{index}_{level}"), norm=norm)
                        for level in range(len(levels))
                    ]
                levels = [
                    activate(normalise(conv(x))) for x, normalise in zip(levels, norms, strict=True)
                ]
            outputs += levels
        return tuple(outputs)


class Predictors(nn.Module):
    """Class logits and box deltas for every anchor.

    Attributes:
      options: settings.
      num_classes: number of object classes.
    """

    options: RetinaHeadOptions
    num_classes: int

    @nn.compact
    def __call__(
        self, features: tuple[Float[Array, "batch _ _ channels"], ...]
    ) -> list[tuple[Float[Array, "batch _ classes"], Float[Array, "batch _ 4"]]]:
        """Return for each level logits [batch, anchors, classes] and deltas [batch, anchors, 4].

        Args:
          features: what `Towers` returns.
        """
        prior = nn.initializers.constant(-math.log((1 - _PRIOR) / _PRIOR))
        rows = {"class": (self.num_classes, prior), "box": (4, nn.initializers.zeros)}
        outputs, num_levels = [], len(features) // 2
        for index, (name, (size, bias_init)) in enumerate(rows.items()):
            std, channels = self.options.traits.predictor_std, NUM_RETINA_ANCHORS * size
            predictor = _conv(name, channels, self.options, std, bias_init=bias_init)
            levels = features[index * num_levels : (index + 1) * num_levels]
            outputs.append(
                [predictor(x).astype(jnp.float32).reshape(len(x), -1, size) for x in levels]
            )
        return list(zip(*outputs, strict=True))


def _conv(name, features, options, std, use_bias=True, bias_init=nn.initializers.zeros):
    """Return a 3x3 convolution, or a depthwise 3x3 and a 1x1 one, as a function for all levels."""
    # The normal initialisation is that of plain convolutions: two such factors would let nothing
    # through. Separable ones have TensorFlow's default, as in SpineNet's release.
    init = nn.initializers.glorot_uniform() if options.separable else nn.initializers.normal(std)
    size = 1 if options.separable else 3
    conv = Conv(features, size, use_bias=use_bias, kernel_init=init, bias_init=bias_init, name=name)
    if not options.separable:
        return conv
    depthwise = functools.partial(Conv, size=3, kernel_init=init, name=f"{name}_depthwise")
    made = []  # how many channels there are is known when it is first called

    def separable(x):
        if not made:
            made.append(depthwise(x.shape[-1], groups=x.shape[-1]))
        return conv(made[0](x))

    return separable


def _group_norm(name, dtype):
    return nn.GroupNorm(NUM_GROUPS, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)
