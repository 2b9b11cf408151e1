"""An architecture drawn as SVG: levels upward, blocks left to right, an arrow from each parent."""

import dataclasses

from crnas_jax.arch import Architecture
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.staged import Arch

_WIDTH, _HEIGHT, _MARGIN = 56, 56, 60
_BOX = (36, 26)
_COLOURS = {
    "stem": "#d9d9d9",
    "basic": "#b3cde3",
    "residual": "#b3cde3",
    "bottleneck": "#fed9a6",
    "inverted": "#ccebc5",
    "mbconv": "#ccebc5",
    "tail": "#d9d9d9",
}


@dataclasses.dataclass(frozen=True)
class _Shape:
    """A block as it is drawn: its level, kind, text, parents (indices), and whether it is output.

    Parents of `extras` are added as they are, which a dashed arrow shows.
    """

    level: int
    kind: str
    text: str
    parents: tuple[int, ...]
    is_output: bool
    extras: tuple[int, ...] = ()


def drawing(architecture: Architecture) -> str:
    """Return an architecture as the text of an SVG file.

    The text in a block is its index, with the dilation where that is not 1; a thick frame marks
    the outputs that a detector reads.
    """
    shapes = _SHAPES[type(architecture)](architecture)
    levels = [shape.level for shape in shapes]
    lowest, highest = min(levels), max(levels)
    width = 2 * _MARGIN + _WIDTH * (len(shapes) - 1) + _BOX[0]
    height = 2 * _MARGIN + _HEIGHT * (highest - lowest) + _BOX[1]

    def centre(index):
        x = _MARGIN + _WIDTH * index + _BOX[0] / 2
        return x, height - _MARGIN - _BOX[1] / 2 - _HEIGHT * (shapes[index].level - lowest)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        '<defs><marker id="arrowhead" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for level in range(lowest, highest + 1):
        y = height - _MARGIN - _BOX[1] / 2 - _HEIGHT * (level - lowest)
        lines.append(f'<text x="12" y="{y + 4:g}" fill="#555">L{level}</text>')
    for index, shape in enumerate(shapes):
        for parent in (*shape.parents, *shape.extras):
            dash = ' stroke-dasharray="4 3"' if parent in shape.extras else ""
            lines.append(_arrow(centre(parent), centre(index), dash))
    for index, shape in enumerate(shapes):
        x, y = centre(index)
        frame = 'stroke="#b30000" stroke-width="3"' if shape.is_output else 'stroke="#555"'
        lines.append(
            f'<rect x="{x - _BOX[0] / 2:g}" y="{y - _BOX[1] / 2:g}" width="{_BOX[0]}" '
            f'height="{_BOX[1]}" rx="4" fill="{_COLOURS[shape.kind]}" {frame}>'
            f"<title>{shape.kind}, level {shape.level}</title></rect>"
        )
        lines.append(f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle">{shape.text}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _arrow(start, end, dash):
    """Return a curve from the right or upper side of one block to the left side of another."""
    (x0, y0), (x1, y1) = start, end
    x0, x1 = x0 + _BOX[0] / 2, x1 - _BOX[0] / 2
    bend = max((x1 - x0) / 2, 10)
    # Arrows along a level bow upwards, or they would pass through the blocks between.
    lift = -_HEIGHT * 0.45 if y0 == y1 and x1 - x0 > _WIDTH else 0
    return (
        f'<path d="M{x0:g},{y0:g} C{x0 + bend:g},{y0 + lift:g} {x1 - bend:g},{y1 + lift:g} '
        f'{x1:g},{y1:g}" fill="none" stroke="#555"{dash} marker-end="url(#arrowhead)"/>'
    )


def _staged_shapes(arch):
    shapes, dilations = [], iter(arch.dilations)
    for part in arch.parts():
        for number, unit in enumerate(part.units, 1):
            text = part.kind
            if part.kind == "stage":
                dilation = next(dilations)
                text = f"{len(shapes)}" + (f" d{dilation}" if dilation > 1 else "")
            kind = unit.kind if part.kind == "stage" else part.kind
            is_output = part.level is not None and number == len(part.units)
            parents = (len(shapes) - 1,) if shapes else ()
            shapes.append(_Shape(part.resolution, kind, text, parents, is_output))
    return shapes


def _scale_permuted_shapes(arch):
    kinds = [arch.traits.stem_kind] * len(arch.stem)
    kinds += [block.kind for block in arch.blocks]
    shapes = []
    for index, (node, kind) in enumerate(zip(arch.nodes(), kinds, strict=True)):
        parents = tuple(resample.parent for resample in node.resamples)
        if node.place is None:
            parents = (index - 1,) if index else ()
        text = f"{index}" + (f" d{node.dilation}" if node.dilation > 1 else "")
        shapes.append(_Shape(node.level, kind, text, parents, node.is_output, node.extras))
    return shapes


_SHAPES = {Arch: _staged_shapes, ScalePermuted: _scale_permuted_shapes}
