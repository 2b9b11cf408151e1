"""Multiply-adds and parameters of backbones."""

from crnas_jax.arch.cost.layers import Cost, Layers, num_cells, reduced
from crnas_jax.arch.staged import Arch


def backbone_cost(arch: Arch, canvas: tuple[int, int], convention: str = "macs") -> Cost:
    """Count a backbone on an input of `canvas` (height, width)."""
    parts = backbone_parts(arch, canvas, convention).values()
    return sum((unit for units in parts for unit in units), Cost())


def backbone_parts(
    arch: Arch, canvas: tuple[int, int], convention: str = "macs"
) -> dict[str, list[Cost]]:
    """Count the units of every part (`Arch.parts`): by the part's name, one cost for each unit."""
    layers, size, costs = Layers(convention), canvas, {}
    for part in arch.parts():
        costs[part.name] = []
        for unit in part.units:
            cost, size = _unit_cost(layers, unit, size)
            costs[part.name].append(cost)
    return costs


def _unit_cost(layers, unit, size):
    """Count a stem, block or tail on an input of `size`; return the size of its output too."""

    def conv(shape, size):
        return layers.conv(
            shape.in_channels,
            shape.out_channels,
            shape.size,
            num_cells(size),
            groups=shape.groups,
            norm=True,
        )

    total, input_size = Cost(), size
    for shape in unit.convolutions:
        size = reduced(size, shape.stride)
        total += conv(shape, size)
    if unit.projection:
        total += conv(unit.projection, size)
    if layers.thop and unit.uncounted_expansion:
        total += Cost(conv(unit.uncounted_expansion, input_size).flops)
    return total, reduced(size, unit.pool_stride)
