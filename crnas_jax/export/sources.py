"""Find what is to be exported: a network of a run, or a path of one of its supernets."""

import dataclasses
import pathlib
from collections.abc import Sequence

from jaxtyping import PyTree

from crnas_jax import arch
from crnas_jax.arch import Architecture
from crnas_jax.arch.staged import Arch
from crnas_jax.checkpoint import load_variables
from crnas_jax.data.paths import leads_out
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.export.detector import DESCRIPTION, load_detector, read_description
from crnas_jax.export.weights import NETWORK, SUPERNET, VARIABLES, from_json, load_weights
from crnas_jax.models.build import Detector
from crnas_jax.models.layers import LayerOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.models.supernet.scale_operations import ScaleSupernet, ScaleSupernetSpec
from crnas_jax.models.transfer import cut
from crnas_jax.runtime.files import read_json
from crnas_jax.spaces.operations import OperationSpace

_COMMAND = "command line"
_AGAIN = "train the supernet again"


@dataclasses.dataclass(frozen=True)
class Network:
    """A stand-alone network with its weights.

    Attributes:
      arch: its backbone.
      variables: {"params", "batch_stats"}, each with a "backbone".
      detector: the detector; None for a classifier, of which the backbone alone is exported.
      size: resize rule of the detector.
      category_ids: category ids of the labels 1..C.
      class_names: their names.
      name: name of the network in its run.
      is_subnet: whether it was cut out of a supernet.
      layers: what its layers have in common.
    """

    arch: Architecture
    variables: PyTree
    detector: Detector | None = None
    size: ImageSize | None = None
    category_ids: Sequence[int] = ()
    class_names: Sequence[str] = ()
    name: str = "network"
    is_subnet: bool = False
    layers: LayerOptions = LayerOptions()


@dataclasses.dataclass(frozen=True)
class Path:
    """Which path of a supernet is meant: its depths and dilations, or its place in a search.

    Attributes:
      depths: number of blocks in each searched stage; () for the only allocation, or by `rank`.
      dilations: dilation of each block; () for ones, or by `rank`.
      rank: place in the search that was done in the supernet, from 1; 0 for none.
    """

    depths: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    rank: int = 0


def find_network(workdir: str | pathlib.Path, name: str, path: Path | None = None) -> Network:
    """Load a network of a run.

    Args:
      workdir: the working folder.
      name: folder of the network in it, such as `returned`, `baseline` or `baseline/pretrain`, or
        of a supernet.
      path: path of the supernet; None for a network.

    Raises:
      UserError: there is none, or it does not load.
    """
    workdir = pathlib.Path(workdir).expanduser()
    folder = workdir / name
    if leads_out(name):
        raise UserError(_COMMAND, "--network", f"{name!r} is no folder in {workdir}", "correct it")
    if not workdir.is_dir():
        raise UserError(workdir, "--workdir", "no such folder", "name the folder of a run")
    network = _load(workdir, folder, name, path or Path())
    return dataclasses.replace(network, name=name)


def _load(workdir, folder, name, path):
    if (folder / SUPERNET).exists():
        return dataclasses.replace(_cut(workdir, folder, path), is_subnet=True)
    is_network = (folder / DESCRIPTION).exists() or (folder / NETWORK).exists()
    if is_network and path != Path():
        problem = f"{name} is no supernet"
        raise UserError(_COMMAND, "--depths, --dilations or --rank", problem, "leave them out")
    if (folder / DESCRIPTION).exists():
        predictor = load_detector(folder)
        return Network(
            predictor.detector.spec,
            predictor.variables,
            predictor.detector,
            predictor.size,
            predictor.category_ids,
            predictor.class_names,
            layers=predictor.detector.layers,
        )
    if (folder / NETWORK).exists():
        file, remedy = folder / NETWORK, "train the network again"
        fields = read_json(file, remedy)
        architecture = arch.read_field(fields, file, remedy)
        try:
            layers = from_json(LayerOptions, fields.get("layers", {}))
        except (TypeError, AttributeError, UserError) as error:
            raise UserError(file, "layers", str(error), remedy) from error
        return Network(architecture, load_variables(folder / VARIABLES), layers=layers)
    there = {
        str(file.parent.relative_to(workdir))
        for kind in (DESCRIPTION, SUPERNET, NETWORK)
        for file in workdir.rglob(kind)
    }
    remedy = f"there are {', '.join(sorted(there)[:10])}" if there else "train one first"
    if "." in there:
        remedy = f"name the run's folder: --workdir={workdir.parent} --network={workdir.name}"
    raise UserError(workdir, "--network", f"no trained network {name!r}", remedy)


def _cut(workdir, folder, path):
    """Cut a path out of a supernet, with the weights and statistics that it has there."""
    if path.rank and (path.depths or path.dilations):
        problem = "given beside --depths or --dilations"
        raise UserError(_COMMAND, "--rank", problem, "give one or the other")
    file = folder / SUPERNET
    content = read_json(file, _AGAIN)
    if isinstance(content, dict) and content.get("kind") == ScaleSupernet.kind:
        architecture, network = _permuted_path(workdir, folder, content, path)
    else:
        architecture, network = _staged_path(workdir, folder, path)
    description = content.get("detector")
    if description is None:  # of a version that did not write it
        return Network(architecture, network)
    try:
        detector, *others = read_description(description, architecture)
        return Network(architecture, network, detector, *others, layers=detector.layers)
    except Exception as error:  # fields of wrong types can fail anywhere in the network
        problem = f"{type(error).__name__}: {error}"
        raise UserError(file, "detector", problem, _AGAIN) from error


def _staged_path(workdir, folder, path):
    """Return the architecture and the variables of a path through stages."""
    variables, spec = load_weights(folder)
    depths, dilations = path.depths, path.dilations
    if path.rank:
        depths, dilations = _ranked(workdir, folder, spec, path.rank)
    if not depths:
        if any(len(grid) > 1 for grid in spec.grids):
            problem = f"missing, and {folder.name} holds many"
            raise UserError(_COMMAND, "--depths", problem, "give them, or --rank=1 for the first")
        depths = spec.deepest.depths
    try:
        architecture = Arch(spec.family, depths, dilations, spec.widths)
        return architecture, cut(variables, spec, architecture)
    except UserError as error:
        grids = " x ".join(str(list(grid)) for grid in spec.grids)
        remedy = f"it holds depths {grids} and dilations {list(spec.dilations)}"
        raise UserError(_COMMAND, "--depths, --dilations", error.problem, remedy) from error


def _permuted_path(workdir, folder, content, path):
    """Return the architecture and the variables of a scale-permuted network with dilations."""
    try:
        names = [field.name for field in dataclasses.fields(ScaleSupernetSpec)]
        spec = from_json(ScaleSupernetSpec, {name: content[name] for name in names})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(folder / SUPERNET, "fields", problem, _AGAIN) from error
    dilations = path.dilations or spec.arch.block_dilations
    if path.rank:
        dilations = spec.space.dilations_of(_ranked_code(workdir, folder, path.rank))
    is_path = len(dilations) == len(spec.arch.blocks) and set(dilations) <= set(spec.dilations)
    if path.depths or not is_path:
        problem = f"no path with depths {list(path.depths)}, dilations {list(dilations)}"
        remedy = f"give one of {list(spec.dilations)} for each of {len(spec.arch.blocks)} blocks"
        raise UserError(_COMMAND, "--depths, --dilations", problem, remedy)
    architecture = dataclasses.replace(spec.arch, dilations=tuple(dilations))
    supernet, choice = ScaleSupernet(spec), spec.choice_of(architecture)
    variables = {
        collection: {**tree, "backbone": supernet.extract(tree["backbone"], choice)}
        for collection, tree in load_variables(folder / VARIABLES).items()
    }
    return architecture, variables


def _ranked(workdir, folder, spec: SupernetSpec, rank):
    """Return depths and dilations of a place in the search that was done in a supernet."""
    code = _ranked_code(workdir, folder, rank)
    if folder.name.startswith("stage"):
        return code, ()
    depths = spec.deepest.depths
    space = OperationSpace(spec.arch(depths).stage_depths, spec.dilations, spec.tie)
    return depths, space.dilations_of(code)


def _ranked_code(workdir, folder, rank):
    """Return the code at a place of the search that was done in a supernet."""
    level = folder.name.removesuffix("_supernet")
    file = workdir / f"{level}_search" / "result.json"
    if not file.exists():
        problem = f"the {level} search is not finished"
        raise UserError(workdir, "--rank", problem, "finish it, or give --depths and --dilations")
    try:
        codes = [tuple(map(int, row["code"])) for row in read_json(file)["ranking"]]
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(file, "ranking", problem, "give --depths and --dilations") from error
    if rank > len(codes):
        problem = f"{rank}, and the search has ranked {len(codes)} codes"
        raise UserError(_COMMAND, "--rank", problem, "give a smaller number")
    return codes[rank - 1]
