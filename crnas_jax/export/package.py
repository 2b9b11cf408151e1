"""An export: a folder that other programs load, with or without this package.

arch.json            what the network is, and what its input has to be
variables/           weights, for Orbax (v0 and v1) and flax at this path
weights.safetensors  the same, flat
backbone.py          the backbone as a Flax module that needs jax and flax alone
detector.json        of a detector: what `crnas_jax.load_detector` needs
README.md            the lines that load all this
SHA256SUMS           digests of the files
"""

import dataclasses
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save

from crnas_jax import __version__, arch, checkpoint
from crnas_jax.arch import Architecture
from crnas_jax.data.coco import category_entries
from crnas_jax.errors import UserError
from crnas_jax.export import layer_list, readme, scenic
from crnas_jax.export.detector import save_detector
from crnas_jax.export.sources import Network
from crnas_jax.export.weights import VARIABLES, from_json
from crnas_jax.models.backbones.alone import Backbone
from crnas_jax.models.layers import MEAN, STD, LayerOptions
from crnas_jax.runtime.files import file_sha256, read_json, write, write_json

FORMAT = 1
ARCH, SAFETENSORS, SUMS = "arch.json", "weights.safetensors", "SHA256SUMS"
LAYOUTS, PARTS = ("crnas_jax", "scenic"), ("detector", "backbone")
_AGAIN = "export it again"
_LAYERS = ("activation", "bn_momentum", "bn_epsilon")
_TEMPLATE = pathlib.Path(__file__).parents[1] / "models" / "standalone_backbone.py"


def write_export(
    output: str | pathlib.Path, network: Network, part: str = "detector", layout: str = LAYOUTS[0]
) -> None:
    """Write a network as a folder for other programs.

    Args:
      output: the folder; a new one.
      network: the network; without a detector its backbone alone is written.
      part: `detector` or `backbone`, one of `PARTS`.
      layout: names of the parameters, one of `LAYOUTS`; `scenic` has the backbone alone.

    Raises:
      UserError: the folder is there, or the network has no such part or layout.
    """
    output = pathlib.Path(output).expanduser()
    if output.exists():
        raise UserError(output, "--output", "it exists already", "name a new folder")
    if part == "detector" and layout == "scenic":
        remedy = "export its backbone: --part=backbone"
        raise UserError(output, "--layout=scenic", "it has the backbone alone", remedy)
    if part == "detector" and network.detector is None:
        remedy = "export its backbone: --part=backbone"
        raise UserError(output, "--part", "it is no detector", remedy)
    description = {"format": FORMAT, "version": __version__, "layout": layout, "part": part}
    description |= {"network": network.name, "is_subnet": network.is_subnet}
    description |= _description(network, part)
    variables = {
        name: {"backbone": tree["backbone"]} if part == "backbone" else tree
        for name, tree in network.variables.items()
    }
    if layout == "scenic":
        variables, line = scenic.convert(network.arch, variables)
        description["scenic"] = {"line": line, "num_layers": scenic.num_layers(network.arch)}
    work = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: under another name until everything is there.
        work = pathlib.Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        folder = work / output.name
        folder.mkdir()
        _write(folder, network, variables, description)
        folder.rename(output)
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise UserError(output, "--output", problem, "make room, or name another folder") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _write(work, network, variables, description):
    layout, part = description["layout"], description["part"]
    if part == "detector":
        categories = category_entries(network.category_ids, network.class_names)
        save_detector(work, network.detector, variables, network.size, categories)
    else:
        checkpoint.save_variables(work / VARIABLES, variables)
    (work / SAFETENSORS).write_bytes(save(flat(variables)))
    write_json(work / ARCH, description)
    if layout != "scenic":
        shutil.copyfile(_TEMPLATE, work / "backbone.py")
    (work / "README.md").write_text(readme.text(description))
    lines = [f"{file_sha256(path).hex()}  {path.relative_to(work)}\n" for path in _files(work)]
    (work / SUMS).write_text("".join(lines))


def write_table(output: str | pathlib.Path, network: Architecture) -> None:
    """Write a network without weights as a file that `config.baseline` names.

    Args:
      output: the file, a new one that ends with .json.
      network: the network.

    Raises:
      UserError: the file is there, or has another ending.
    """
    output = pathlib.Path(output).expanduser()
    if output.suffix != ".json":
        raise UserError(output, "--output", "no .json file", "name one")
    if output.exists():
        raise UserError(output, "--output", "it exists already", "name a new file")
    write(output, (network.to_json() + "\n").encode())


def _description(network: Network, of: str) -> dict:
    """Return what `arch.json` holds of a detector or a backbone, beside its format."""
    architecture, layers = network.arch, network.layers
    if not layers.activation:
        layers = dataclasses.replace(layers, activation=architecture.activation)
    levels, prefix = architecture.levels, "p" if architecture.has_pyramid else "c"
    description = {
        "arch": json.loads(architecture.to_json()),
        "layers": {name: getattr(layers, name) for name in _LAYERS},
        "backbone": layer_list.describe(architecture, layers),
        "levels": [
            {"name": f"{prefix}{level}", "stride": 2**level, "channels": channels}
            for level, channels in zip(levels, architecture.out_channels, strict=True)
        ],
        "input": {
            **{"channels": "RGB", "mean": list(MEAN), "std": list(STD)},
            "multiple": 2 ** levels[-1],
        },
    }
    if network.size is not None:
        description["input"] |= dataclasses.asdict(network.size)
    if of == "detector":
        description["category_ids"] = list(network.category_ids)
        description["class_names"] = list(network.class_names)
    return description


def flat(variables: PyTree) -> dict[str, np.ndarray]:
    """Return the arrays by their path, its parts joined by dots."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {".".join(key.key for key in path): np.ascontiguousarray(leaf) for path, leaf in leaves}


def load_backbone(path: str | pathlib.Path, remat: bool = False) -> tuple[Backbone, PyTree]:
    """Load the backbone of an export.

    Args:
      path: folder that `crnas-jax export` wrote, of a detector or of a backbone.
      remat: whether blocks are recomputed in the backward pass: less memory, more time.

    Returns:
      The Linen module, a function of (normalised images, train) to the features, finest first (c2
      to c5, or p3 to p7), and its variables, {"params", "batch_stats"} of NumPy arrays.

    Raises:
      UserError: it is no export, its layout is another one, or it is damaged.
    """
    folder = pathlib.Path(path)
    description = read_export(folder)
    if description.get("layout") != LAYOUTS[0]:
        problem = f"{str(description.get('layout'))[:40]!r} has other names"
        raise UserError(folder / ARCH, "layout", problem, "export it without --layout")
    architecture = arch.read_field(description, folder / ARCH, _AGAIN)
    try:
        layers = from_json(LayerOptions, description.get("layers", {}))
    except (TypeError, AttributeError, UserError) as error:
        raise UserError(folder / ARCH, "layers", str(error), _AGAIN) from error
    backbone = Backbone(architecture, remat, layers)
    image = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), image)
    stored = checkpoint.layout(folder / VARIABLES)
    like = {name: {**stored.get(name, {}), "backbone": tree} for name, tree in shapes.items()}
    variables = checkpoint.load_variables(folder / VARIABLES, like)
    return backbone, {name: tree["backbone"] for name, tree in variables.items()}


def read_export(folder: pathlib.Path) -> dict:
    """Return the content of `arch.json`, after a look at the digests of all files.

    Raises:
      UserError: it is no export, of another format, or a file has changed.
    """
    if not (folder / ARCH).is_file():
        remedy = "give a folder that crnas-jax export wrote"
        raise UserError(folder, ARCH, "missing: it is no export", remedy)
    description = read_json(folder / ARCH, _AGAIN)
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        problem = f"{found!r}, this version reads {FORMAT}"
        raise UserError(folder / ARCH, "format", problem, _AGAIN)
    try:
        lines = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
        expected = {name: content for content, name in lines}
    except (OSError, ValueError) as error:
        raise UserError(folder / SUMS, "file", f"does not load: {error}", _AGAIN) from error
    actual = {str(path.relative_to(folder)): path for path in _files(folder)}
    unlisted = sorted(actual.keys() - expected.keys())
    if unlisted:
        raise UserError(folder / SUMS, unlisted[0], "it is not in the list", _AGAIN)
    for name, content in expected.items():
        if name not in actual or file_sha256(actual[name]).hex() != content:
            problem = "its content has changed" if name in actual else "missing"
            raise UserError(folder / name, "file", problem, _AGAIN)
    return description


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
