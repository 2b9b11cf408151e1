"""Published architectures: baselines, stage-searched (scr_), fully searched (cr_).

Sources: CR-NAS, tables 1, 2 and 7, where operation codes are 0-based: 0 stands for dilation 1; and
SpineNet (arXiv 1912.05027), figure 4, with the scales of its release.
"""

import difflib
import pathlib

from crnas_jax import arch
from crnas_jax.arch import Architecture
from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted, StemBlock
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import read_json

_BASIC, _BOTTLENECK, _RESNEXT, _MOBILE = (
    "resnet_basic",
    "resnet_bottleneck",
    "resnext_32x4d",
    "mobilenet_v2",
)
# A digit for each block, a space between stages. MobileNetV2's leave out stem and tail, both 0.
_OPERATIONS = {
    "resnet18": "0 0 10 1021",
    "resnet50": "0 010 00120 0102112",
    "resnet101": "00 000 01010002000101010 11001012011",
    "mobilenet_v2": "1 01 02 011 0011 0110 2",
}


def _searched(name: str, stage_searched: Arch) -> Arch:
    code = _OPERATIONS[name].replace(" ", "")
    dilations = tuple(int(operation) + 1 for operation in code)
    return Arch(stage_searched.family, stage_searched.depths, dilations)


ARCHS = {
    "resnet18": Arch(_BASIC, (2, 2, 2, 2)),
    "resnet34": Arch(_BASIC, (3, 4, 6, 3)),
    "resnet50": Arch(_BOTTLENECK, (3, 4, 6, 3)),
    "resnet101": Arch(_BOTTLENECK, (3, 4, 23, 3)),
    "resnext50_32x4d": Arch(_RESNEXT, (3, 4, 6, 3)),
    "resnext101_32x4d": Arch(_RESNEXT, (3, 4, 23, 3)),
    "mobilenet_v2": Arch(_MOBILE, (2, 3, 4, 3, 3)),
    "scr_resnet18": Arch(_BASIC, (1, 1, 2, 4)),
    "scr_resnet50": Arch(_BOTTLENECK, (1, 3, 5, 7)),
    "scr_resnet101": Arch(_BOTTLENECK, (2, 3, 17, 11)),
    "scr_resnext50_32x4d": Arch(_RESNEXT, (2, 2, 6, 6)),
    "scr_resnext101_32x4d": Arch(_RESNEXT, (3, 4, 15, 11)),
    "scr_mobilenet_v2": Arch(_MOBILE, (2, 2, 3, 4, 4)),
}
ARCHS |= {f"cr_{name}": _searched(name, ARCHS[f"scr_{name}"]) for name in _OPERATIONS}


# Permuted blocks as (level, kind, parents), outputs last: b is a bottleneck, r a residual block, m
# an MBConv.
_KINDS = {"b": "bottleneck", "r": "residual", "m": "mbconv"}


def _blocks(inner: tuple, outputs: tuple) -> tuple[PermutedBlock, ...]:
    return tuple(
        PermutedBlock(level, _KINDS[kind], parents, is_output)
        for rows, is_output in ((inner, False), (outputs, True))
        for level, kind, parents in rows
    )


_L2_STEM = (StemBlock(2), StemBlock(2))
_SPINENET_49 = _blocks(
    (
        *((2, "b", (0, 1)), (4, "r", (0, 1)), (3, "b", (2, 3)), (4, "b", (2, 4))),
        *((6, "r", (3, 5)), (4, "b", (3, 5)), (5, "r", (6, 7)), (7, "r", (6, 8))),
        *((5, "b", (8, 9)), (5, "b", (8, 10))),
    ),
    (
        (4, "b", (5, 10)),
        (3, "b", (4, 10)),
        (5, "b", (7, 12)),
        (7, "b", (5, 14)),
        (6, "b", (12, 14)),
    ),
)
_R0_SP53 = _blocks(
    (
        *((2, "b", (0, 1)), (3, "b", (0, 1)), (3, "b", (2, 3)), (4, "b", (2, 4))),
        *((4, "b", (3, 5)), (3, "b", (5, 6)), (5, "b", (4, 7)), (4, "b", (4, 8))),
        *((4, "b", (8, 9)), (4, "b", (8, 10))),
    ),
    ((3, "b", (4, 10)), (4, "b", (6, 7)), (5, "b", (8, 13)), (7, "b", (6, 9)), (6, "b", (7, 9))),
)
_R23_SP30 = _blocks(
    (
        *((4, "b", (5, 6)), (4, "b", (5, 6)), (4, "b", (7, 8)), (3, "b", (8, 9))),
        (2, "b", (9, 10)),
    ),
    ((4, "b", (5, 9)), (3, "b", (9, 10)), (5, "b", (9, 10)), (7, "b", (11, 13)), (6, "b", (9, 14))),
)
_R23_STEM = (
    *(StemBlock(level, is_parent=False) for level in (2, 2, 3, 3, 4)),
    *(StemBlock(4), StemBlock(5)),
)
# What SpineNet's search starts from: the blocks of ResNet-50 with one of its L5 traded for an L6
# and an L7, in scale-decreasing order, each reading the two before it or the last two of its level.
_SEED = _blocks(
    (
        *((2, "b", (0, 1)), (3, "b", (1, 2)), (3, "b", (2, 3)), (3, "b", (3, 4))),
        *((4, "b", (4, 5)), (4, "b", (5, 6)), (4, "b", (6, 7)), (4, "b", (7, 8))),
        *((4, "b", (8, 9)), (5, "b", (9, 10))),
    ),
    (
        *((3, "b", (4, 5)), (4, "b", (9, 10)), (5, "b", (10, 11))),
        *((6, "b", (11, 14)), (7, "b", (14, 15))),
    ),
)
# The same with eight blocks and three outputs.
_SEED_8 = _blocks(
    (
        *((2, "b", (0, 1)), (3, "b", (1, 2)), (4, "b", (2, 3)), (4, "b", (3, 4))),
        (5, "b", (4, 5)),
    ),
    ((3, "b", (2, 3)), (4, "b", (4, 5)), (5, "b", (5, 6))),
)
_MOBILE_49 = _blocks(
    (
        *((2, "m", (0, 1)), (2, "m", (1, 2)), (4, "m", (1, 2)), (3, "m", (3, 4))),
        *((4, "m", (3, 5)), (6, "m", (4, 6)), (4, "m", (4, 6)), (5, "m", (7, 8))),
        *((7, "m", (7, 9)), (5, "m", (9, 10)), (5, "m", (9, 11))),
    ),
    (
        (4, "m", (6, 11)),
        (3, "m", (5, 11)),
        (5, "m", (8, 13)),
        (7, "m", (6, 15)),
        (6, "m", (13, 15)),
    ),
)
_MOBILE_STEM = (StemBlock(1), StemBlock(2))


def _spinenet(repeats: int, width_scale: float, alpha: float, endpoints: int) -> ScalePermuted:
    return ScalePermuted("spinenet", _L2_STEM, _SPINENET_49, repeats, width_scale, alpha, endpoints)


def _mobile(width_scale: float, endpoints: int) -> ScalePermuted:
    return ScalePermuted(
        "spinenet_mobile",
        *(_MOBILE_STEM, _MOBILE_49),
        width_scale=width_scale,
        endpoint_channels=endpoints,
    )


SCALE_PERMUTED = {
    "spinenet49s": _spinenet(1, 0.65, 0.5, 128),
    "spinenet49": _spinenet(1, 1.0, 0.5, 256),
    "spinenet96": _spinenet(2, 1.0, 0.5, 256),
    "spinenet143": _spinenet(3, 1.0, 1.0, 256),
    "spinenet143l": _spinenet(3, 1.3, 1.0, 256),
    "spinenet190": _spinenet(4, 1.3, 1.0, 512),
    # The widths with which SpineNet was searched (section 3.3): for small images and a CPU.
    "spinenet49_quarter": _spinenet(1, 0.25, 0.25, 64),
    "spinenet49xs_mobile": _mobile(0.6, 24),
    "spinenet49s_mobile": _mobile(0.65, 40),
    "spinenet49_mobile": _mobile(1.0, 48),
    "spinenet_seed": ScalePermuted("spinenet", _L2_STEM, _SEED),
    "spinenet_seed8": ScalePermuted("spinenet", _L2_STEM, _SEED_8, 1, 0.25, 0.25, 64),
    "r0_sp53": ScalePermuted("spinenet", _L2_STEM, _R0_SP53),
    "r23_sp30": ScalePermuted("spinenet", _R23_STEM, _R23_SP30),
}
NETWORKS: dict[str, Architecture] = ARCHS | SCALE_PERMUTED


def published_head(architecture: Architecture, form: str) -> tuple[int, bool]:
    """Return how RetinaNet's head was published with a backbone.

    Args:
      architecture: the backbone.
      form: form of the head, such as `spinenet`.

    Returns:
      The number of convolutions in a tower, more in SpineNet's form where it is 512 wide (190), and
      whether they are separable, as in that form on the mobile backbones.
    """
    if form != "spinenet":
        return 4, False
    is_wide = architecture.has_pyramid and architecture.out_channels[0] >= 512
    return 7 if is_wide else 4, architecture.family == "spinenet_mobile"


def get(name: str) -> Architecture:
    """Return the published architecture of that name.

    Raises:
      UserError: the name is unknown; the message proposes those nearest to it.
    """
    if name not in NETWORKS:
        nearest = " or ".join(difflib.get_close_matches(name, NETWORKS))
        remedy = f"did you mean {nearest}?" if nearest else f"use one of {', '.join(NETWORKS)}"
        raise UserError("zoo", "name", f"{name!r} is unknown", remedy)
    return NETWORKS[name]


def find(name: str) -> Architecture:
    """Return a published architecture, or one in a file if the name ends with `.json`.

    The file holds what `to_json` of an architecture wrote, or is the `result.json` of a search.

    Raises:
      UserError: the name is unknown, or the file holds no architecture.
    """
    if not name.endswith(".json"):
        return get(name)
    remedy = "give a file of to_json() of an architecture, or the result.json of a search"
    fields = read_json(pathlib.Path(name), remedy)
    is_result = isinstance(fields, dict) and "arch" in fields
    return arch.read_field(fields if is_result else {"arch": fields}, name, remedy, is_own=True)
