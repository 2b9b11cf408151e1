"""A finished detector as a folder: weights, and all that is needed to run them elsewhere."""

import dataclasses
import json
import pathlib

from jaxtyping import PyTree

from crnas_jax import arch
from crnas_jax.arch import Architecture
from crnas_jax.checkpoint import load_variables, save_variables
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.predict import Predictor
from crnas_jax.export import format1
from crnas_jax.export.weights import FORMAT, READABLE_FORMATS, VARIABLES, from_json
from crnas_jax.models.build import DETECTOR_OPTIONS, Detector
from crnas_jax.models.layers import LayerOptions
from crnas_jax.runtime.files import write_json

DESCRIPTION = "detector.json"


def save_detector(
    folder: str | pathlib.Path,
    detector: Detector,
    variables: PyTree,
    size: ImageSize,
    categories: list[dict],
) -> None:
    """Write `variables/` (Orbax) and `detector.json`.

    Args:
      folder: receives both.
      detector: a stand-alone detector.
      variables: {"params", "batch_stats"}.
      size: resize rule it was trained with.
      categories: {"id", "name"} for the labels 1..C.
    """
    folder = pathlib.Path(folder)
    save_variables(folder / VARIABLES, variables)
    arch_fields = {"arch": json.loads(detector.spec.to_json())}
    description = {**arch_fields, **describe(detector, size, categories)}
    write_json(folder / DESCRIPTION, {"format": FORMAT, **description})


def describe(detector: Detector, size: ImageSize, categories: list[dict]) -> dict:
    """Return all of a detector but its backbone as JSON; arguments as of `save_detector`."""
    kinds = {options_class: name for name, options_class in DETECTOR_OPTIONS.items()}
    return {
        "detector": kinds[type(detector.options)],
        "options": dataclasses.asdict(detector.options),
        "layers": dataclasses.asdict(detector.layers),
        "precision": detector.precision,
        "size": dataclasses.asdict(size),
        "categories": categories,
    }


def read_description(
    fields: dict, architecture: Architecture
) -> tuple[Detector, ImageSize, list[int], list[str]]:
    """Return detector, resize rule, category ids and class names from what `describe` returned.

    Args:
      fields: what it returned.
      architecture: the backbone.

    Raises:
      Exception: fields of wrong types can fail anywhere in the network.
    """
    # Before there were others, every detector was an R-CNN, its layers as the defaults are.
    options = from_json(DETECTOR_OPTIONS[fields.get("detector", "rcnn")], fields["options"])
    layers = from_json(LayerOptions, fields.get("layers", {}))
    precision = fields["precision"]
    detector = Detector(architecture, options, precision=precision, layers=layers)
    category_ids = [int(category["id"]) for category in fields["categories"]]
    class_names = [str(category["name"]) for category in fields["categories"]]
    if len(class_names) != options.num_classes:
        raise ValueError("precision or categories do not fit")
    return detector, ImageSize(**fields["size"]), category_ids, class_names


def load_detector(folder: str | pathlib.Path) -> Predictor:
    """Load what `save_detector` wrote, ready to `predict`.

    Args:
      folder: such as `<workdir>/returned`.

    Raises:
      UserError: there is no detector, or it does not load.
    """
    folder = pathlib.Path(folder)
    file = folder / DESCRIPTION
    try:
        fields = json.loads(file.read_text())
        if fields["format"] not in READABLE_FORMATS:
            raise ValueError(f"format {fields['format']}, this version reads {READABLE_FORMATS}")
        if fields["format"] == 1:
            fields = format1.upgrade(fields)
        architecture = arch.read(json.dumps(fields["arch"]))
        detector, size, category_ids, class_names = read_description(fields, architecture)
        shapes = detector.shapes
    except OSError as error:
        inside = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
        inside = [path for path in inside if path.name == "returned"] or inside
        remedy = f"give {inside[0]}" if inside else "give the folder of a trained detector"
        if (folder / "arch.json").exists():
            remedy = "it is the export of a backbone: export the detector (--part=detector)"
        raise UserError(file, "file", error.strerror or "unreadable", remedy) from error
    except Exception as error:  # fields of wrong types can fail anywhere in the network
        raise UserError(
            file, "fields", f"{type(error).__name__}: {error}", "export the detector again"
        ) from error
    variables = load_variables(folder / VARIABLES, shapes)
    return Predictor(detector, variables, size, category_ids, class_names)
