"""Published architectures: baselines, stage-searched (scr_), fully searched (cr_).

Source: CR-NAS, tables 1, 2 and 7. Operation codes there are 0-based: 0 stands for dilation 1.
"""

import difflib
import pathlib

from crnas_jax import arch
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


def get(name: str) -> Arch:
    """Return the published architecture of that name.

    Raises:
      UserError: the name is unknown; the message proposes the nearest.
    """
    if name not in ARCHS:
        nearest = difflib.get_close_matches(name, ARCHS, n=1) or sorted(ARCHS)
        remedy = f"did you mean {', '.join(nearest)}?"
        raise UserError("zoo", "name", f"{name!r} is unknown", remedy)
    return ARCHS[name]


def find(name: str) -> Arch:
    """Return a published architecture, or one in a file if the name ends with `.json`.

    The file holds what `Arch.to_json` wrote, or is the `result.json` of a search.

    Raises:
      UserError: the name is unknown, or the file holds no architecture.
    """
    if not name.endswith(".json"):
        return get(name)
    remedy = "give a file of Arch.to_json(), or the result.json of a search"
    fields = read_json(pathlib.Path(name), remedy)
    is_result = isinstance(fields, dict) and "arch" in fields
    return arch.read_field(fields if is_result else {"arch": fields}, name, remedy)
