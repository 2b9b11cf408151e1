"""A finished detector as a folder: weights, and all that is needed to run them elsewhere."""

import dataclasses
import json
import pathlib
import typing

from jaxtyping import PyTree

from crnas_jax.arch.staged import Arch
from crnas_jax.checkpoint import layout, load_variables, save_variables
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.predict import Predictor
from crnas_jax.models.build import PRECISIONS, Detector
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.runtime.workdir import read_json, write_json

FORMAT = 1
_COLLECTIONS = ("params", "batch_stats")
DESCRIPTION, SUPERNET, VARIABLES = "detector.json", "supernet.json", "variables"


def save_detector(
    folder: str | pathlib.Path,
    detector: Detector,
    variables: PyTree,
    size: ImageSize,
    categories: list[dict],
) -> None:
    """Writes `variables/` (Orbax) and `detector.json`.

    Args:
      folder: receives both.
      detector: stand-alone.
      variables: {"params", "batch_stats"}.
      size: resizing rule it was trained with.
      categories: {"id", "name"} of the labels 1..C.
    """
    folder = pathlib.Path(folder)
    save_variables(folder / VARIABLES, variables)
    description = {
        "format": FORMAT,
        "arch": json.loads(detector.spec.to_json()),
        "options": dataclasses.asdict(detector.options),
        "precision": detector.precision,
        "size": dataclasses.asdict(size),
        "categories": categories,
    }
    write_json(folder / DESCRIPTION, description)


def save_supernet(folder: str | pathlib.Path, spec: SupernetSpec, variables: PyTree) -> None:
    """Writes `variables/` (Orbax) and `supernet.json`, which says what stands in which bank."""
    folder = pathlib.Path(folder)
    save_variables(folder / VARIABLES, variables)
    write_json(folder / SUPERNET, {"format": FORMAT, **dataclasses.asdict(spec)})


def weights_folder(start: str | pathlib.Path) -> pathlib.Path:
    """The folder of weights that `start` means: its `variables`, or itself."""
    folder = pathlib.Path(start)
    return folder / VARIABLES if (folder / VARIABLES).is_dir() else folder


def require_weights(start: str | pathlib.Path, field: str = "checkpoint") -> None:
    """Raises UserError about `field` unless `load_weights` will find a network's weights."""
    folder = weights_folder(start)
    if not folder.is_dir():
        remedy = 'train those weights first, name others, or give "" to start from random ones'
        raise UserError(start, field, "there are no weights", remedy)
    found = layout(folder)
    trees = [found.get(name) if isinstance(found, dict) else None for name in _COLLECTIONS]
    if not all(isinstance(tree, dict) and "backbone" in tree for tree in trees):
        raise UserError(
            start,
            field,
            "holds no backbone in params and batch_stats",
            "give the folder variables/ of a trained network, or the one it stands in",
        )


def load_weights(start: str | pathlib.Path) -> tuple[PyTree, SupernetSpec | None]:
    """Weights to start from, and what a supernet holds; None of a network.

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
        try:
            fields = {name: value for name, value in fields.items() if name != "format"}
            spec = _options(SupernetSpec, fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(file, "fields", str(error), "train the supernet again") from error
    return load_variables(folder), spec


def load_detector(folder: str | pathlib.Path) -> Predictor:
    """The detector that `save_detector` wrote, ready to `predict`.

    Args:
      folder: for one `<workdir>/searched`.

    Raises:
      UserError: there is none, or it does not load.
    """
    folder = pathlib.Path(folder)
    file = folder / DESCRIPTION
    try:
        fields = json.loads(file.read_text())
        if fields["format"] != FORMAT:
            raise ValueError(f"format {fields['format']}, this version reads {FORMAT}")
        detector = Detector(
            Arch.from_json(json.dumps(fields["arch"])),
            _options(DetectorOptions, fields["options"]),
            precision=fields["precision"],
        )
        size = ImageSize(**fields["size"])
        category_ids = [int(category["id"]) for category in fields["categories"]]
        class_names = [str(category["name"]) for category in fields["categories"]]
        if detector.precision not in PRECISIONS or len(class_names) != detector.options.classes:
            raise ValueError("precision or categories do not fit")
        if min(size.short, size.long) < 1:
            raise ValueError(f"size {size}")
        shapes = detector.shapes
    except OSError as error:
        raise UserError(
            file, "file", error.strerror or "unreadable", "give the folder of a trained detector"
        ) from error
    except Exception as error:  # fields of wrong types can fail anywhere in the network
        raise UserError(
            file, "fields", f"{type(error).__name__}: {error}", "export the detector again"
        ) from error
    variables = load_variables(folder / VARIABLES, shapes)
    return Predictor(detector, variables, size, category_ids, class_names)


def _options(kind, value):
    """A value of an options dataclass's field, or the dataclass itself, from its JSON form."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _options(hints[name], field) for name, field in value.items()})
    arguments = typing.get_args(kind)
    if isinstance(value, list):  # a tuple: tuple[X, ...], tuple[X, Y]
        return tuple(_options(arguments[0], entry) for entry in value)
    optional = [one for one in arguments if dataclasses.is_dataclass(one)]
    return _options(optional[0], value) if optional and value is not None else value
