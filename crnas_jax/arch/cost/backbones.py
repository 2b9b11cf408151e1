"""Multiply-adds and parameters of backbones."""

from crnas_jax.arch import Architecture
from crnas_jax.arch.cost.layers import Cost, Layers, num_cells, reduced
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.staged import Arch


def backbone_cost(arch: Architecture, canvas: tuple[int, int], convention: str = "macs") -> Cost:
    """Count a backbone on an input of `canvas` (height, width)."""
    parts = backbone_parts(arch, canvas, convention).values()
    return sum((unit for units in parts for unit in units), Cost())


def backbone_parts(
    arch: Architecture, canvas: tuple[int, int], convention: str = "macs"
) -> dict[str, list[Cost]]:
    """Count the units of every part: by the part's name, one cost for each unit.

    Of a scale-permuted network a part is a block with its resampling, or an endpoint.
    """
    return _COUNTERS[type(arch)](arch, canvas, Layers(convention))


def _staged_parts(arch, size, layers):
    costs = {}
    for part in arch.parts():
        costs[part.name] = []
        for unit in part.units:
            cost, size = _unit_cost(layers, unit, size)
            costs[part.name].append(cost)
    return costs


def _scale_permuted_parts(arch, canvas, layers):
    sizes = [canvas]
    for _ in range(7):
        sizes.append(reduced(sizes[-1]))
    stem, size = _unit_cost(layers, arch.stem_shape, canvas)
    costs = {"stem": [stem]}
    for node in arch.nodes():
        # A block of the stem reads the one before it, any other what its parents are resampled to.
        size = size if node.place is None else sizes[node.level]
        costs[node.name] = [
            sum(
                (
                    _conv(layers, shape, sizes[level])
                    for shape, level in zip(resample.convolutions, resample.levels, strict=True)
                ),
                Cost(),
            )
            for resample in node.resamples
        ]
        for unit in node.units:
            cost, size = _unit_cost(layers, unit, size)
            costs[node.name].append(cost)
    for node in arch.nodes():
        if node.is_output:
            shape = arch.endpoint(node)
            costs[f"endpoint{node.level}"] = [_conv(layers, shape, sizes[node.level])]
    return costs


_COUNTERS = {Arch: _staged_parts, ScalePermuted: _scale_permuted_parts}


def _conv(layers, shape, size):
    """Count a convolution with its normalisation on an output of `size`."""
    return layers.conv(
        shape.in_channels,
        shape.out_channels,
        shape.size,
        num_cells(size),
        groups=shape.groups,
        norm=True,
    )


def _unit_cost(layers, unit, size):
    """Count a stem, block or tail on an input of `size`; return the size of its output too."""
    total, input_size = Cost(), size
    for shape in unit.convolutions:
        size = reduced(size, shape.stride)
        total += _conv(layers, shape, size)
    if unit.projection:
        total += _conv(layers, unit.projection, size)
    if unit.squeeze:  # one dense layer down, one up, on the mean over the map
        total += layers.dense(unit.inner_channels, unit.squeeze, 1)
        total += layers.dense(unit.squeeze, unit.inner_channels, 1)
    if layers.thop and unit.uncounted_expansion:
        total += Cost(_conv(layers, unit.uncounted_expansion, input_size).flops)
    return total, reduced(size, unit.pool_stride)
