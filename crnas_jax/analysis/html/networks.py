"""The networks side by side: a row for each, a box for each block."""

import json

from markupsafe import Markup

from crnas_jax.analysis.drawing import drawing
from crnas_jax.analysis.html.tables import paragraph, section, wide
from crnas_jax.analysis.html.verdict import compared_rows
from crnas_jax.analysis.markup import element
from crnas_jax.analysis.record import Record, read_arch
from crnas_jax.arch.staged import Arch
from crnas_jax.search.refine import CALLED

# Dilations from here on share a colour; the number tells them apart.
_COLOURS = 4


def networks(record: Record) -> Markup | None:
    """Return the networks that are known: compared, finalists, best of each budget."""
    found, rows = named_networks(record), []
    for arch, texts in found.items():
        text = ", ".join(texts)
        if isinstance(arch, Arch):
            rows.append(_row(arch, text))
        else:
            picture = wide(Markup(drawing(arch)), "paper")
            rows.append(element("div", element("p", text), picture))
    if not rows:
        return None
    about = (
        "A box is a block, its number the dilation of its convolution; the groups are stages, "
        "from the finest resolution on."
    )
    if not any(isinstance(arch, Arch) for arch in found):
        about = (
            "A box is a block, its height the level of its resolution; arrows come from the blocks "
            "that it reads, thick frames mark what the detector reads."
        )
    return section("Blocks", paragraph(about), *rows, ident="blocks")


def named_networks(record: Record) -> dict:
    """Return the architectures that have a part in the run, with what each of them is."""
    found: dict = {}

    def add(fields, text):
        arch = read_arch(fields)
        texts = found.setdefault(arch, []) if arch else [text]
        if text not in texts:
            texts.append(text)

    for label, row in compared_rows(record)[0].items():
        add(row["arch"], CALLED[label])
    for level in ("stage", "operation", "architecture"):
        row = record.result_of(f"{level}_search")
        if row is not None:
            add(row["arch"], f"first of the {level} search")
            for best in row.get("pareto", ()):
                add(best["arch"], f"best of {best['budget']:g} blocks")
    for arch, _ in record.finalists():
        add(json.loads(arch.to_json()), "finalist")
    return found


def _row(arch, text):
    stages = []
    for number, dilations in enumerate(arch.stage_dilations(), 1):
        boxes = [
            element("span", f"{dilation}", class_=f"block d{min(dilation, _COLOURS)}")
            for dilation in dilations
        ]
        listed = " ".join(map(str, dilations))
        about = f"stage {number}: {len(dilations)} blocks, dilations {listed}"
        stages.append(element("span", *boxes, class_="stage", role="img", aria_label=about))
    head = element(
        "button", f"{arch.label}: {text}", type="button", class_="follow", data_follow=arch.label
    )
    return element("div", head, element("div", *stages), class_="row", data_network=arch.label)
