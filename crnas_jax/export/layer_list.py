"""A backbone described layer by layer, for `models/standalone_backbone.py`."""

from crnas_jax.arch import Architecture
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.staged import Arch
from crnas_jax.models.layers import LayerOptions


def describe(architecture: Architecture, layers: LayerOptions) -> dict:
    """Return the object `backbone` of an export's `arch.json`.

    Args:
      architecture: the backbone.
      layers: its activation and batch normalisation.
    """
    inner = layers.activation
    description = {"epsilon": layers.bn_epsilon, "momentum": layers.bn_momentum}
    return {**description, **_DESCRIPTIONS[type(architecture)](architecture, inner)}


def _staged(architecture, inner):
    return {"parts": [_part(architecture, part, inner) for part in architecture.parts()]}


def _part(architecture, part, inner):
    dilations = [1] * len(part.units)
    if part.kind == "stage":
        dilations = architecture.stage_dilations()[part.stage]
    units = [
        _unit(unit, dilation, inner, is_block=part.kind == "stage")
        for unit, dilation in zip(part.units, dilations, strict=True)
    ]
    if part.kind == "stage":
        units = [{**unit, "name": f"block{number}"} for number, unit in enumerate(units, 1)]
    return {"name": part.name, "level": part.level, "units": units}


def _scale_permuted(architecture, inner):
    nodes = architecture.nodes()
    return {
        "stem": _unit(architecture.stem_shape, 1, inner, is_block=False),
        "activation": inner,
        "blocks": [_node(node, inner) for node in nodes],
        "endpoints": [
            {
                "name": f"endpoint{node.level}",
                "level": node.level,
                "block": index,
                "layer": _layer(architecture.endpoint(node), inner, 1),
            }
            for index, node in sorted(enumerate(nodes), key=lambda item: item[1].level)
            if node.is_output
        ],
    }


def _node(node, inner):
    parents = []
    for number, resample in enumerate(node.resamples):
        *first, last = resample.convolutions
        layers = [_layer(conv, inner, 1) for conv in first] + [_layer(last, "none", 1)]
        parents.append({"name": f"resample{number}", "block": resample.parent, "layers": layers})
    units = [_unit(unit, 1, inner, is_block=True) for unit in node.units]
    for unit in units:  # of a residual block both convolutions are dilated
        for layer in unit["convolutions"]:
            layer["dilation"] = node.dilation if layer["size"] > 1 else 1
    return {
        "name": node.name,
        "level": node.level,
        "parents": parents,
        "extras": list(node.extras),
        "units": [{**unit, "name": f"repeat{n}"} for n, unit in enumerate(units, 1)],
    }


_DESCRIPTIONS = {Arch: _staged, ScalePermuted: _scale_permuted}


def _unit(unit, dilation, inner, is_block):
    *convolutions, last = unit.convolutions
    # The last convolution of a block is activated after the shortcut is added, if at all.
    layers = [_layer(c, inner, dilation) for c in convolutions]
    layers.append(_layer(last, "none" if is_block else inner, dilation))
    shortcut = None
    if unit.projection is not None:
        shortcut = _layer(unit.projection, "none", 1)
    elif is_block and (unit.has_identity or unit.kind != "inverted"):
        shortcut = "identity"
    return {
        "name": None,
        "convolutions": layers,
        "squeeze": unit.squeeze,
        "shortcut": shortcut,
        "activation": inner if is_block and unit.kind != "inverted" else "none",
        "inner_activation": inner,
        "pool_stride": unit.pool_stride,
    }


def _layer(conv, activation, dilation):
    return {
        "conv": f"{conv.prefix}conv{conv.name}",
        "norm": f"{conv.prefix}bn{conv.name}",
        "channels": conv.out_channels,
        "size": conv.size,
        "stride": conv.stride,
        "groups": conv.groups,
        "dilation": dilation if conv.name == "2" else 1,
        "activation": activation,
    }
