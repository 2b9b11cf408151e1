"""Detection on any photographs: from files or arrays to boxes in their own pixels."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import PyTree

from crnas_jax.data import images as image_files
from crnas_jax.data import masks
from crnas_jax.data.coco import category_entries, objects_record
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.coco import compact
from crnas_jax.models.build import Detector
from crnas_jax.parallel.mesh import make_mesh, put_batch


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was found in one image, best first.

    Attributes:
      boxes: float32 [n, 4], xyxy, in pixels of the image as a viewer shows it (EXIF applied).
      scores: float32 [n], 0..1.
      labels: int [n], 1..C.
      category_ids: int [n], the data set's.
      class_names: n names.
      height: of the image.
      width: of the image.
      mask_cells: float32 [n, M, M], probabilities over the boxes; None of a detector without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    category_ids: np.ndarray
    class_names: list[str]
    height: int
    width: int
    mask_cells: np.ndarray | None = None

    def mask(self, index: int) -> np.ndarray:
        """The mask of one detection, bool [height, width]."""
        pasted = masks.paste(self.mask_cells[index], self.boxes[index], self.height, self.width)
        return pasted >= 0.5


class Predictor:
    """A trained detector on the first device.

    Attributes:
      class_names: of the labels 1..C.
      category_ids: likewise, the data set's.
    """

    def __init__(
        self,
        detector: Detector,
        variables: PyTree,
        size: ImageSize,
        category_ids: list[int],
        class_names: list[str],
    ):
        """Args: a stand-alone detector, its weights, its resizing rule, its classes."""
        self.detector, self.category_ids, self.class_names = detector, category_ids, class_names
        self.variables = variables
        self._row = DetectionRows(size)
        self._run = jax.jit(lambda variables, batch: detector.apply(variables, batch, None))

    def predict(
        self, images: Iterable, score: float = 0.05, batch_size: int = 8
    ) -> list[Prediction]:
        """Detections in every image, in their order.

        Args:
          images: file names, Pillow images, or uint8 arrays, [H, W, 3] RGB, [H, W] grey, or
            [H, W, 1 or 4]; of any sizes. None at all gives an empty list.
          score: least score of a detection; the detector itself drops those below its own
            threshold (0.05 unless trained otherwise).
          batch_size: most images in a call; read as they are needed.

        Raises:
          UserError: a file is missing or broken, or an array is no image.
        """
        single = isinstance(images, str | os.PathLike) or hasattr(images, "convert")
        if single or getattr(images, "ndim", 4) < 4:
            raise UserError("predict", "images", "one image", "give a list of images")
        found: dict[int, Prediction] = {}
        waiting = {False: [], True: []}  # by orientation: each has a canvas of its own
        number = 0
        for index, image in enumerate(images):
            number += 1
            image = read_image(image)
            batch = waiting[image.shape[0] > image.shape[1]]
            batch.append((index, image))
            if len(batch) == batch_size:
                found |= self._predict(batch, score)
                batch.clear()
        for batch in waiting.values():
            found |= self._predict(batch, score)
        return [found[index] for index in range(number)]

    def _predict(self, images, score):
        """{index: Prediction} of images of one orientation."""
        if not images:
            return {}
        rng = np.random.default_rng(0)  # nothing is drawn
        rows = []
        for index, image in images:
            portrait = image.shape[0] > image.shape[1]
            record = {"image": image, **objects_record(index, [])}
            row = self._row(record, portrait, rng)
            rows.append({**row, "weight": np.float32(1)})
        # To the next power of two, so that few programs serve any number of images.
        padding = (1 << (len(rows) - 1).bit_length()) - len(rows)
        rows += [{**rows[0], "weight": np.float32(0)}] * padding
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        mesh = make_mesh(len(rows), devices=1)
        detections = jax.device_get(self._run(self.variables, put_batch(mesh, batch)))
        found = compact(detections, batch)
        results = {}
        for index, image in images:
            own = (found["image_id"] == index) & (found["scores"] >= score)
            labels = found["labels"][own]
            results[index] = Prediction(
                boxes=found["boxes"][own],
                scores=found["scores"][own],
                labels=labels,
                category_ids=np.array(self.category_ids)[labels - 1],
                class_names=[self.class_names[label - 1] for label in labels],
                height=image.shape[0],
                width=image.shape[1],
                mask_cells=found["masks"][own] if "masks" in found else None,
            )
        return results


def read_image(image) -> np.ndarray:
    """A file (turned as its EXIF tag says), an array or a Pillow image as uint8 [H, W, 3] RGB.

    Raises:
      UserError: the file is missing or broken, or the array is no image.
    """
    if isinstance(image, str | os.PathLike):
        return image_files.read(image)
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or 0 in pixels.shape:
        raise UserError(
            "predict",
            "images",
            f"an array {pixels.dtype}{list(pixels.shape)}",
            "give uint8 [height, width, 3], RGB",
        )
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, 2)
    if pixels.shape[2] not in (3, 4):
        raise UserError("predict", "images", f"{pixels.shape[2]} channels", "give 1, 3 or 4")
    return np.ascontiguousarray(pixels[..., :3])


def to_coco(
    names: list[str], predictions: list[Prediction], category_ids: list[int], class_names: list[str]
) -> dict:
    """Predictions as one COCO object: images, categories, and annotations with scores; masks are
    run-length coded, and `area` is then theirs.
    """
    images, annotations = [], []
    for image_id, (name, one) in enumerate(zip(names, predictions, strict=True), 1):
        images.append({"id": image_id, "file_name": name, "height": one.height, "width": one.width})
        detections = zip(
            one.boxes.tolist(), one.scores.tolist(), one.category_ids.tolist(), strict=True
        )
        for index, ((x0, y0, x1, y1), score, category) in enumerate(detections):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": score,
            }
            if one.mask_cells is not None:
                mask = one.mask(index)
                annotation |= {"segmentation": masks.encode(mask), "area": int(mask.sum())}
            annotations.append(annotation)
    categories = category_entries(category_ids, class_names)
    return {"images": images, "categories": categories, "annotations": annotations}


def list_images(path: str | pathlib.Path) -> list[pathlib.Path]:
    """A file itself, or the images in a folder and below it, by name.

    Raises:
      UserError: there is no such file or folder.
    """
    if not str(path):
        raise UserError("command line", "--images", "empty", "give image files or folders")
    path = pathlib.Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(path, "--images", "missing", "give image files or folders")
    return sorted(file for file in path.rglob("*") if image_files.is_image(file))
