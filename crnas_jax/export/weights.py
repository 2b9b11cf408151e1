"""Weights of supernets and networks as folders, and starting a training from them."""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Callable

from jaxtyping import PyTree

from crnas_jax.checkpoint import content_digest, layout, load_variables, save_variables
from crnas_jax.errors import UserError
from crnas_jax.models.build import Model
from crnas_jax.models.supernet.banks import SupernetSpec, bank_place
from crnas_jax.models.transfer import fill
from crnas_jax.runtime.files import read_json, write_json

# Version of `detector.json` and `supernet.json`; 1 is read too.
FORMAT = 2
READABLE_FORMATS = (1, FORMAT)
SUPERNET, NETWORK, VARIABLES = "supernet.json", "network.json", "variables"
_COLLECTIONS = ("params", "batch_stats")


def save_weights(
    folder: str | pathlib.Path, model: Model, variables: PyTree, detector: dict | None = None
) -> None:
    """Write `variables/` (Orbax), and `supernet.json` or `network.json`.

    The former tells what stands in which bank, the latter the architecture of a network.

    Args:
      folder: receives them.
      model: the model.
      variables: {"params", "batch_stats"}.
      detector: what a supernet's backbone stands in (`detector.describe`).
    """
    folder = pathlib.Path(folder)
    save_variables(folder / VARIABLES, variables)
    banks = model.backbone.bank_description
    if banks is not None:
        description = {**banks, **({"detector": detector} if detector else {})}
        write_json(folder / SUPERNET, {"format": FORMAT, **description})
    else:
        fields = {"format": FORMAT, "arch": json.loads(model.spec.to_json())}
        write_json(folder / NETWORK, {**fields, "layers": dataclasses.asdict(model.layers)})


def weights_folder(start: str | pathlib.Path) -> pathlib.Path:
    """Return the folder with the weights that `start` names: its `variables`, or itself."""
    folder = pathlib.Path(start)
    return folder / VARIABLES if (folder / VARIABLES).is_dir() else folder


def require_weights(start: str | pathlib.Path, field: str = "checkpoint") -> None:
    """Raise UserError about `field` unless `load_weights` will find a network's weights."""
    folder = weights_folder(start)
    if not folder.is_dir():
        remedy = 'train those weights first, name others, or give "" to start from random ones'
        raise UserError(start, field, "there are no weights", remedy)
    inside = sorted(path.parent for path in folder.glob(f"*/{VARIABLES}"))
    if inside:
        problem = "it holds the folders of networks"
        raise UserError(start, field, problem, f"give one of them, such as {inside[0]}")
    tree = layout(folder)
    collections = [tree.get(name) if isinstance(tree, dict) else None for name in _COLLECTIONS]
    if not all(isinstance(tree, dict) and "backbone" in tree for tree in collections):
        raise UserError(
            start,
            field,
            "holds no backbone in params and batch_stats",
            "give the folder variables/ of a trained network, or the folder that holds it",
        )


def load_weights(start: str | pathlib.Path) -> tuple[PyTree, SupernetSpec | None]:
    """Load weights to start from, and what a supernet holds; None for a network.

    Args:
      start: see `weights_folder`.

    Raises:
      UserError: there are none, or they do not load.
    """
    folder = weights_folder(start)
    file = folder.parent / SUPERNET
    spec = None
    if file.exists():
        fields = read_json(file, "train the supernet again")
        if isinstance(fields, dict) and "kind" in fields:  # a supernet of stages has none
            problem = f"{fields['kind']!r}: only a supernet of stages starts other trainings"
            raise UserError(file, "kind", problem, "start from a network's weights")
        try:
            fields.pop("detector", None)
            if fields.pop("format", None) not in READABLE_FORMATS:
                raise ValueError(f"the format is none of {READABLE_FORMATS}")
            spec = from_json(SupernetSpec, fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(file, "fields", str(error), "train the supernet again") from error
    variables = load_variables(folder)
    if spec is None and _has_banks(variables):
        problem = f"a supernet's weights without {SUPERNET}, which tells them apart"
        raise UserError(start, "checkpoint", problem, f"give the folder that holds {SUPERNET} too")
    return variables, spec


def _has_banks(variables):
    backbone = variables["params"].get("backbone", {})
    return any(
        bank_place((stage, kind)) is not None and kind in ("first", "rest")
        for stage, kinds in backbone.items()
        for kind in kinds
    )


def weights_digest(start: str | pathlib.Path) -> str:
    """Return a digest of the weights that `load_weights` reads."""
    return content_digest(weights_folder(start))


def initialiser(model: Model, start: str | pathlib.Path) -> Callable[[PyTree], PyTree] | None:
    """Return the function that fills a model's fresh variables with the weights in `start`.

    It prints what is not filled. None where `start` is empty.
    """
    if not str(start):
        return None

    def initialise(fresh):
        try:
            filled, unfilled = fill(model, fresh, *load_weights(start))
        except UserError as error:
            if error.where != "initial weights":
                raise
            raise UserError(start, error.field, error.problem, error.remedy) from error
        print(f"starts from {start}; not filled: {', '.join(unfilled) or 'nothing'}")
        return filled

    return initialise


def from_json(kind, value):
    """Return an options dataclass, or a value of one of its fields, from its JSON form."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_json(hints[name], field) for name, field in value.items()})
    arguments = typing.get_args(kind)
    if isinstance(value, list):  # a tuple: tuple[X, ...], tuple[X, Y]
        return tuple(from_json(arguments[0], entry) for entry in value)
    optional = [argument for argument in arguments if dataclasses.is_dataclass(argument)]
    return from_json(optional[0], value) if optional and value is not None else value
