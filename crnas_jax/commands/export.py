"""Subcommand that writes networks for other programs."""

from absl import flags

from crnas_jax.commands.command import Command
from crnas_jax.errors import UserError


def _export_flags(values, _):
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder to write; a new one.", flag_values=values)
    text = (
        "Folder of the network in it: returned, baseline, stage_only, searched, finalists/..., "
        "baseline/pretrain; or stage_supernet or operation_supernet, for one of their subnets."
    )
    flags.DEFINE_string("network", "returned", text, flag_values=values)
    text = "The whole detector, or its backbone alone; the detector where there is one."
    flags.DEFINE_enum("part", None, ("detector", "backbone"), text, flag_values=values)
    text = "Format of the files."
    flags.DEFINE_enum("format", "weights", ("weights",), text, flag_values=values)
    text = "Names of the parameters; scenic's are for undilated bottleneck ResNets."
    flags.DEFINE_enum("layout", "crnas_jax", ("crnas_jax", "scenic"), text, flag_values=values)
    text = "Depths of a supernet's subnet, such as 3,4,6,3."
    flags.DEFINE_list("depths", [], text, flag_values=values)
    text = "Dilations of its blocks, in network order."
    flags.DEFINE_list("dilations", [], text, flag_values=values)
    text = "Place of the subnet in the search that was done in the supernet, from 1."
    flags.DEFINE_integer("rank", None, text, 1, flag_values=values)


def _export(values):
    from crnas_jax.export.package import write_export
    from crnas_jax.export.sources import Path, find_network

    path = Path(
        _whole_numbers(values, "depths"), _whole_numbers(values, "dilations"), values.rank or 0
    )
    network = find_network(values.workdir, values.network, path)
    part = values.part
    if part is None:
        is_whole = network.detector is not None and values.layout != "scenic"
        part = "detector" if is_whole else "backbone"
    write_export(values.output, network, part, values.layout)
    print(f"{values.output}: {part} of {values.network}, {network.arch.summary}; see its README.md")


def _whole_numbers(values, name):
    try:
        return tuple(int(text) for text in values[name].value)
    except ValueError as error:
        text = ",".join(values[name].value)
        remedy = "give whole numbers, separated by commas"
        raise UserError("command line", f"--{name}", f"{text!r}", remedy) from error


COMMANDS = {
    "export": Command(
        "Write a network of a run, or a subnet of its supernet, for other programs.",
        "--workdir=runs/mine --output=exports/mine",
        _export_flags,
        _export,
        ("workdir", "output"),
    )
}
