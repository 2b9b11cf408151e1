"""Effective receptive fields drawn as heat maps, as SVG and PNG."""

import base64
import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from markupsafe import Markup

from crnas_jax.analysis.markup import element, shorten
from crnas_jax.analysis.plots import STYLE, writing

_SHADES = 64
_CELL, _GAP, _TOP, _LEFT = 150, 14, 24, 150
_STOPS = ((255, 255, 255), (253, 190, 120), (215, 70, 40), (90, 0, 25))


def svg(found: Mapping[str, Sequence[Mapping]], style: str = "") -> Markup:
    """Return the fields of networks as SVG: a row for each network, a column for each level.

    Args:
      found: by network its fields, as `erf.Field.to_json` has them.
      style: style sheet, for a file of its own.
    """
    columns = max(map(len, found.values()))
    tallest = max(
        _CELL * field["canvas"][0] / max(field["canvas"]) for row in found.values() for field in row
    )
    width, row_height = _LEFT + columns * (_CELL + _GAP), tallest + _GAP
    height = _TOP + len(found) * row_height + 18
    legend = "box: the level's smallest anchor; broken circle: the fitted width"
    parts = [element("title", "Effective receptive fields")]
    if style:
        ground = element("rect", width="100%", height="100%", class_="ground")
        parts += [element("style", Markup(style)), ground]
    for row, (name, levels) in enumerate(found.items()):
        y = _TOP + row * row_height
        parts.append(element("text", shorten(name, 22), x=4, y=y + tallest / 2))
        for column, field in enumerate(levels):
            x = _LEFT + column * (_CELL + _GAP)
            if row == 0:
                middle = x + _CELL / 2
                parts.append(element("text", f"p{field['level']}", x=middle, y=16))
            parts.append(_map(field, x, y))
    parts.append(element("text", legend, x=_LEFT, y=f"{height - 5:g}"))
    return element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        class_="chart",
        role="img",
    )


def _map(field, x, y):
    scale = _CELL / max(field["canvas"])
    height, width = (side * scale for side in field["canvas"])
    picture = base64.b64encode(_picture(field["map"])).decode()
    middle_y, middle_x = (place * scale for place in field["centre"])
    parts = [
        element("title", f"p{field['level']}: width {field['width']:.0f} pixels"),
        element("image", href=f"data:image/png;base64,{picture}", width=width, height=height),
        element(
            "circle",
            cx=f"{middle_x:.1f}",
            cy=f"{middle_y:.1f}",
            r=f"{field['width'] * scale / 2:.1f}",
            class_="fitted",
        ),
        element("rect", width=width, height=height, class_="frame"),
    ]
    if field["anchor"] is not None and field["anchor"] < max(field["canvas"]):
        side = field["anchor"] * scale
        unit_y, unit_x = (place * scale for place in field["unit"])
        corner = {"x": f"{unit_x - side / 2:.1f}", "y": f"{unit_y - side / 2:.1f}"}
        sides = {"width": f"{side:.1f}", "height": f"{side:.1f}"}
        parts.append(element("rect", **corner, **sides, class_="anchor"))
    # An inner SVG cuts off what reaches out of its map.
    return element("svg", *parts, x=x, y=y, width=width, height=height)


def save(found: Mapping[str, Sequence[Mapping]], path: pathlib.Path) -> None:
    """Write the fields of networks as .svg, or as .png by matplotlib.

    Raises:
      UserError: the file cannot be written.
    """
    with writing(path):
        if path.suffix.lower() == ".svg":
            path.write_text(svg(found, STYLE.read_text()), encoding="utf-8")
        else:
            _save_png(found, path)


def _save_png(found, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle, Rectangle

    columns = max(map(len, found.values()))
    figure = Figure(figsize=(1 + 2 * columns, 0.4 + 2.1 * len(found)), dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(found), columns, squeeze=False)
    for row, (name, fields) in zip(grid, found.items(), strict=True):
        for axes, field in zip(row, fields, strict=False):
            height, width = field["canvas"]
            picture = PIL.Image.open(io.BytesIO(_picture(field["map"]))).convert("RGB")
            axes.imshow(np.asarray(picture), extent=(0, width, height, 0))
            y, x = field["centre"]
            radius = field["width"] / 2
            axes.add_patch(Circle((x, y), radius, fill=False, linestyle="--", edgecolor="black"))
            if field["anchor"] is not None and field["anchor"] < max(field["canvas"]):
                side = field["anchor"]
                corner = (field["unit"][1] - side / 2, field["unit"][0] - side / 2)
                box = Rectangle(corner, side, side, fill=False, linewidth=1.5, edgecolor="C0")
                axes.add_patch(box)
            axes.set_title(f"p{field['level']}", fontsize=8)
            axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
        row[0].set_ylabel(name, fontsize=8, parse_math=False)
    figure.supxlabel("box: smallest anchor; broken circle: fitted width", fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def _picture(rows: Sequence[str]) -> bytes:
    """Return the map of `Field.to_json` as a picture, PNG: from white to dark red."""
    shades = np.array([list(bytes.fromhex(row)) for row in rows], np.uint8) // (256 // _SHADES)
    places, known = np.linspace(0, 1, _SHADES), np.linspace(0, 1, len(_STOPS))
    palette = np.stack([np.interp(places, known, part) for part in np.transpose(_STOPS)], axis=1)
    picture = PIL.Image.fromarray(shades, "P")
    picture.putpalette(np.round(palette).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
