"""A grid of test photographs: what is there, and what two networks see in it."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
from markupsafe import Markup

from crnas_jax.analysis.html.errors import judged
from crnas_jax.analysis.html.tables import paragraph, section
from crnas_jax.analysis.markup import element, name
from crnas_jax.analysis.record import Record
from crnas_jax.data.build import detection_source
from crnas_jax.data.source import DetectionSource
from crnas_jax.errors import UserError
from crnas_jax.evaluation.draw import draw, results_on
from crnas_jax.search.refine import CALLED
from crnas_jax.settings import data as data_settings

_NUM_PHOTOGRAPHS = 8
# Longer side of an embedded picture, pixels, and its quality as JPEG.
_SIDE, _QUALITY = 360, 80


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A test image with what is on it and what was detected.

    Attributes:
      file_name: its name in the annotations.
      pictures: by caption the drawn image, as JPEG.
      mistakes: by network the number of false detections and missed objects.
    """

    file_name: str
    pictures: dict[str, bytes]
    mistakes: dict[str, int]


def photographs(record: Record, config) -> tuple[list[Photograph], str]:
    """Draw the test images on which the networks differ most; the data folder has to be there.

    Args:
      record: the working folder.
      config: its config.

    Returns:
      The images, and why there are none.
    """
    found = judged(record)
    if not found:
        return [], ""
    try:
        options = data_settings.data_options(config)
        source = detection_source(options, "test", keep_in=record.path / "records")
        if record.digests.get("test", {}).get("annotations") != source.digest:
            return [], "There are no photographs: the data folder holds other annotations now."
        return _draw_all(record, found, source), ""
    except UserError as error:
        return [], f"There are no photographs: {error}"


def _draw_all(record, found, source: DetectionSource):
    mistakes = {
        label: np.add(content["false_by_image"], content["missed_by_image"])
        for label, content in found.items()
    }
    by_network = {
        label: _by_image(record.steps[f"{label}/test"].read("detections.json"), content["score"])
        for label, content in found.items()
    }
    truth = _by_image(source.coco["annotations"])
    categories, drawn = (source.category_ids, source.class_names), []
    detections = (entry for rows in by_network.values() for row in rows.values() for entry in row)
    has_masks = any("segmentation" in entry for entry in detections)
    for row in _order(list(mistakes.values()))[:_NUM_PHOTOGRAPHS]:
        image_id = int(source.image_ids[row])
        image = source[row]["image"]
        panels = {"truth": (truth.get(image_id, []), True)}
        panels |= {CALLED[n]: (rows.get(image_id, []), False) for n, rows in by_network.items()}
        pictures = {}
        for caption, (entries, is_truth) in panels.items():
            size = image.shape[:2] if has_masks else None
            objects = results_on(entries, *categories, is_truth, size)
            pictures[caption] = _jpeg(draw(image, objects, _SIDE))
        counts = {CALLED[label]: int(count[row]) for label, count in mistakes.items()}
        drawn.append(Photograph(_file_name(source, image_id), pictures, counts))
    return drawn


def _order(mistakes: Sequence[np.ndarray]):
    """Return the images with the largest difference first, then those with most mistakes."""
    total = np.sum(mistakes, axis=0)
    differs = np.abs(mistakes[-1] - mistakes[0])
    return np.lexsort((-total, -differs)).tolist()


def _by_image(entries, score=None):
    rows: dict[int, list[dict]] = {}
    for entry in entries or ():
        if score is None or entry["score"] >= score:
            rows.setdefault(entry["image_id"], []).append(entry)
    return rows


def _file_name(source, image_id):
    for image in source.coco["images"]:
        if image["id"] == image_id:
            return str(image.get("file_name", image_id))
    return str(image_id)


def _jpeg(image):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def grid_of(photographs: Sequence[Photograph], why_none: str) -> Markup | None:
    """Return the photographs as a section."""
    if not photographs:
        return (
            section("Photographs", paragraph(why_none), ident="photographs") if why_none else None
        )
    about = paragraph(
        "Test images, those first on which the networks differ most. Frames of the truth are "
        "double lines; detections count from the score with the best F1 on."
    )
    rows = []
    for photograph in photographs:
        pictures = [
            element(
                "figure",
                element("img", src=_address(content), alt=f"{caption} on {photograph.file_name}"),
                element("figcaption", caption),
            )
            for caption, content in photograph.pictures.items()
        ]
        counts = ", ".join(f"{label} {count}" for label, count in photograph.mistakes.items())
        head = element("p", name(photograph.file_name), f": mistakes {counts}")
        rows.append(element("div", head, element("div", *pictures, class_="trio"), class_="photo"))
    return section("Photographs", about, *rows, ident="photographs")


def _address(content):
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
