"""Subcommand that writes networks for other programs."""

from absl import flags

from crnas_jax.commands.command import Command
from crnas_jax.errors import UserError


def _export_flags(values, _):
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder to write; a new one.", flag_values=values)
    text = (
        "Folder of the network in it: returned, baseline, stage_only, searched, finalists/..., "
        "baseline/pretrain; or stage_supernet or operation_supernet, for one of their subnets; or "
        "candidates, for one of an architecture search."
    )
    flags.DEFINE_string("network", "returned", text, flag_values=values)
    text = (
        "The whole detector, or its backbone alone; the detector where there is one. table: no "
        "weights, only the network's blocks as a .json file, for --config.baseline; of a candidate "
        "at the baseline's widths."
    )
    parts = ("detector", "backbone", "table")
    flags.DEFINE_enum("part", None, parts, text, flag_values=values)
    text = "Format of the files."
    flags.DEFINE_enum("format", "weights", ("weights",), text, flag_values=values)
    text = "Names of the parameters; scenic's are for undilated bottleneck ResNets."
    flags.DEFINE_enum("layout", "crnas_jax", ("crnas_jax", "scenic"), text, flag_values=values)
    text = "Depths of a supernet's subnet, such as 3,4,6,3."
    flags.DEFINE_list("depths", [], text, flag_values=values)
    text = "Dilations of its blocks, in network order."
    flags.DEFINE_list("dilations", [], text, flag_values=values)
    text = "Place of the subnet, or of the candidate, in its search, from 1."
    flags.DEFINE_integer("rank", None, text, 1, flag_values=values)


def _export(values):
    from crnas_jax.analysis.candidate_networks import find_candidate
    from crnas_jax.export.package import write_export, write_table
    from crnas_jax.export.sources import Path, find_network
    from crnas_jax.runtime.step_key import CANDIDATES

    depths, dilations = (_whole_numbers(values, field) for field in ("depths", "dilations"))
    name, path, table = values.network, Path(depths, dilations, values.rank or 0), None
    if name == CANDIDATES:
        rank, path = path.rank or 1, Path(depths, dilations)
        name, table = find_candidate(values.workdir, rank)
        if not name and values.part != "table":
            problem = f"the weights of candidate {rank} were not kept (proxy.kept_candidates)"
            remedy = "give a smaller number, or --part=table"
            raise UserError("command line", "--rank", problem, remedy)
    if values.part == "table":
        table = table or find_network(values.workdir, name, path).arch
        write_table(values.output, table)
        print(f"{values.output}: {table.summary}, for --config.baseline")
        return
    network = find_network(values.workdir, name, path)
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
