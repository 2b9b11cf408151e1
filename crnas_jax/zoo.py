"""Published architectures: baselines, stage-searched (scr_), fully searched (cr_).

Source: CR-NAS, tables 1 and 2. Codes there are 0-based, 0 standing for dilation 1.
"""

import difflib

from crnas_jax.arch import Arch
from crnas_jax.errors import UserError

_OPERATIONS_18 = (0, 0, 1, 0, 1, 0, 2, 1)
_OPERATIONS_50 = (0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 1, 0, 2, 1, 1, 2)
_OPERATIONS_101 = (
    0,
    0,
    0,
    0,
    0,
    0,
    1,
    0,
    1,
    0,
    0,
    0,
    2,
    0,
    0,
    0,
    1,
    0,
    1,
    0,
    1,
    0,
    1,
    1,
    0,
    0,
    1,
    0,
    1,
    2,
    0,
    1,
    1,
)


def _dilations(code):
    return tuple(operation + 1 for operation in code)


ARCHS = {
    "resnet18": Arch("resnet_basic", (2, 2, 2, 2)),
    "resnet34": Arch("resnet_basic", (3, 4, 6, 3)),
    "resnet50": Arch("resnet_bottleneck", (3, 4, 6, 3)),
    "resnet101": Arch("resnet_bottleneck", (3, 4, 23, 3)),
    "scr_resnet18": Arch("resnet_basic", (1, 1, 2, 4)),
    "scr_resnet50": Arch("resnet_bottleneck", (1, 3, 5, 7)),
    "scr_resnet101": Arch("resnet_bottleneck", (2, 3, 17, 11)),
    "cr_resnet18": Arch("resnet_basic", (1, 1, 2, 4), _dilations(_OPERATIONS_18)),
    "cr_resnet50": Arch("resnet_bottleneck", (1, 3, 5, 7), _dilations(_OPERATIONS_50)),
    "cr_resnet101": Arch("resnet_bottleneck", (2, 3, 17, 11), _dilations(_OPERATIONS_101)),
}


def get(name: str) -> Arch:
    """The published architecture of that name.

    Raises:
      UserError: no such name; the nearest one is proposed.
    """
    if name not in ARCHS:
        near = difflib.get_close_matches(name, ARCHS, n=1) or sorted(ARCHS)
        raise UserError("zoo", "name", f"{name!r} is unknown", f"did you mean {', '.join(near)}?")
    return ARCHS[name]
