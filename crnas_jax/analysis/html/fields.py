"""Effective receptive fields as heat maps with the anchor's box, and their numbers."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from crnas_jax.analysis import heat_maps
from crnas_jax.analysis.html.tables import MISSING, paragraph, section, table, wide
from crnas_jax.analysis.record import Record
from crnas_jax.search.refine import CALLED

# File with the fields in the folder of a network.
FIELDS = "receptive_fields.json"
_NEAR_THE_SIDE = 0.7


def fields(record: Record) -> Markup | None:
    """Return the receptive fields of the networks that have them."""
    found = {
        CALLED[label]: content["fields"]
        for label in CALLED
        if (content := record.read(f"{label}/{FIELDS}")) and content["fields"]
    }
    if not found:
        return None
    about = paragraph(
        "The absolute gradient of a level's central unit with respect to the image, averaged over "
        "images: dark is strong, on a scale of square roots. The box is the level's smallest "
        "anchor, the broken circle the width: four standard deviations of a fitted Gaussian."
    )
    reach = max(field["width"] / min(field["canvas"]) for row in found.values() for field in row)
    bounded = paragraph("Widths near the side of the input are bounded by it: the field goes on.")
    picture = wide(heat_maps.svg(found))
    bounded = bounded if reach > _NEAR_THE_SIDE else None
    return section("Receptive fields", about, bounded, picture, numbers(found), ident="fields")


def numbers(found: Mapping[str, Sequence[Mapping]]) -> Markup:
    """Return the widths of the fields of networks and their ratios to the anchors as a table."""
    rows = [
        (
            name,
            f"p{field['level']}",
            MISSING if field["anchor"] is None else f"{field['anchor']:g}",
            f"{field['width']:.0f}",
            MISSING if field["ratio"] is None else f"{field['ratio']:.2f}",
            f"{field['size']:.0f}",
        )
        for name, levels in found.items()
        for field in levels
    ]
    head = ("network", "level", "anchor", "width", "width / anchor", "size (Luo)")
    return table(head, rows, "Receptive fields, pixels")
