"""The names that google-research/scenic gives to the parameters of its ResNet.

scenic (`scenic/projects/baselines/resnet.py`) names the stem `stem_conv` and `init_bn`, counts the
blocks of all stages together, `ResidualBlock_0` and so on, and calls the projection on a shortcut
`proj_conv` and `proj_bn`. Its checkpoints hold {"params", "model_state": {"batch_stats"},
"global_step", "rng"}.
"""

import numpy as np
from jaxtyping import PyTree

from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError

# scenic's `BLOCK_SIZE_OPTIONS` of bottleneck blocks, by number of layers.
_KNOWN = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
# Numbers in that table that stand for other depths.
_TAKEN = (5, 8, 11, 14, 9, 18, 34, *_KNOWN)
_RENAMED = {"downsample_conv": "proj_conv", "downsample_bn": "proj_bn"}


def convert(arch: Arch, variables: PyTree) -> tuple[PyTree, str]:
    """Return a backbone's variables as a checkpoint of scenic's.

    Args:
      arch: the architecture.
      variables: {"params", "batch_stats"}, each with a "backbone".

    Returns:
      The tree, and the line that scenic's table of sizes needs for these depths; "" where they are
      in it.

    Raises:
      UserError: scenic's ResNet cannot be this network.
    """
    _require_resnet(arch)
    params, statistics = (
        _renamed(variables[name]["backbone"]) for name in ("params", "batch_stats")
    )
    tree = {
        "params": params,
        "model_state": {"batch_stats": statistics},
        "global_step": np.int32(0),
        "rng": np.zeros(2, np.uint32),
    }
    number, is_known = num_layers(arch), arch.depths in _KNOWN.values()
    return tree, "" if is_known else f"BLOCK_SIZE_OPTIONS[{number}] = ({list(arch.depths)}, True)"


def num_layers(arch: Arch) -> int:
    """Return the key of the depths in scenic's table: the number of layers where it is free."""
    for number, depths in _KNOWN.items():
        if depths == arch.depths:
            return number
    number = 3 * sum(arch.depths) + 2
    return number if number not in _TAKEN else 1000 + number


def _require_resnet(arch):
    problem = ""
    if arch.has_pyramid:
        problem = f"{arch.family}, and scenic's ResNet has stages"
        raise UserError("command line", "--layout=scenic", problem, "export it without --layout")
    traits, width = arch.traits, arch.widths[0]
    if traits.design != "resnet" or traits.block != "bottleneck" or traits.groups > 1:
        problem = f"{arch.family}, and scenic's ResNet with these names has bottleneck blocks"
    elif set(arch.dilations) != {1}:
        problem = f"dilations {sorted(set(arch.dilations))}, and scenic's ResNet has none"
    elif arch.widths != (width, 2 * width, 4 * width, 8 * width):
        problem = f"widths {list(arch.widths)}, and scenic's ResNet doubles them"
    if problem:
        raise UserError("command line", "--layout=scenic", problem, "export it without --layout")


def _renamed(backbone):
    """Return a collection of the backbone under scenic's names."""
    tree = {"stem_conv": backbone["stem"].get("conv1"), "init_bn": backbone["stem"]["bn1"]}
    stages = [backbone[f"stage{stage}"] for stage in (1, 2, 3, 4)]
    blocks = [stage[f"block{number}"] for stage in stages for number in range(1, len(stage) + 1)]
    for number, block in enumerate(blocks):
        tree[f"ResidualBlock_{number}"] = {
            _RENAMED.get(name, name): leaves for name, leaves in block.items()
        }
    return {name: leaves for name, leaves in tree.items() if leaves is not None}
