"""Subcommand that draws an architecture."""

import pathlib

from absl import flags

from crnas_jax.commands.command import Command
from crnas_jax.errors import UserError


def _draw_flags(values, _):
    text = "Name in the zoo (spinenet49, cr_resnet50, ...), or a .json with an architecture."
    flags.DEFINE_string("arch", None, text, flag_values=values)
    flags.DEFINE_string("output", None, "SVG file to write, *.svg; a new one.", flag_values=values)


def _draw(values):
    from crnas_jax.analysis.drawing import drawing
    from crnas_jax.arch import zoo

    output = pathlib.Path(values.output)
    if output.suffix != ".svg":
        raise UserError(output, "--output", "is no SVG file", "end its name in .svg")
    if output.exists():
        raise UserError(output, "--output", "it exists already", "name a new file")
    text = drawing(zoo.find(values.arch))
    try:
        output.write_text(text)
    except OSError as error:
        remedy = "name a file in an existing folder"
        raise UserError(output, "--output", error.strerror or "unwritable", remedy) from error
    print(f"{output}: {values.arch}")


COMMANDS = {
    "draw-arch": Command(
        "Draw an architecture as SVG: its blocks by level, and what each of them reads.",
        "--arch=spinenet49 --output=spinenet49.svg",
        _draw_flags,
        _draw,
        ("arch", "output"),
    )
}
