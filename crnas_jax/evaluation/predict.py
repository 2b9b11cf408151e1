"""Detection on arbitrary images: from files or arrays to boxes in pixels of each image."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable

import jax
import numpy as np
import PIL.Image
from jaxtyping import PyTree

from crnas_jax.data import images as image_files
from crnas_jax.data import masks
from crnas_jax.data.coco import category_entries
from crnas_jax.data.source import objects_record
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.coco import compact_detections
from crnas_jax.models.build import Detector
from crnas_jax.parallel.mesh import local_mesh, put_batch


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The detections in one image, best first.

    Attributes:
      boxes: boxes in xyxy, pixels of the image as a viewer shows it (EXIF applied), float32 [n, 4].
      scores: scores from 0 to 1, float32 [n].
      labels: labels from 1 to C, int [n].
      category_ids: category ids of the data set, int [n].
      class_names: class names of the detections, n strings.
      height: height of the image in pixels.
      width: width of the image in pixels.
      mask_cells: mask probabilities on a grid over each box, float32 [n, M, M]; None for a detector
        without masks.
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
        """Return the mask of one detection, bool [height, width].

        Raises:
          UserError: the detector has no masks.
        """
        if self.mask_cells is None:
            raise UserError("prediction", "mask", "the detector has none", "train a mask_rcnn")
        pasted = masks.paste(self.mask_cells[index], self.boxes[index], self.height, self.width)
        return pasted >= 0.5


class Predictor:
    """A trained detector on the first device.

    Attributes:
      detector: stand-alone detector.
      variables: weights and statistics of the detector.
      category_ids: category ids of the labels 1..C in the data set.
      class_names: class names of the labels 1..C.
      size: resize rule that it was trained with.
    """

    def __init__(
        self,
        detector: Detector,
        variables: PyTree,
        size: ImageSize,
        category_ids: list[int],
        class_names: list[str],
    ):
        """Prepare a detector for prediction."""
        self.detector, self.category_ids, self.class_names = detector, category_ids, class_names
        self.variables, self.size = variables, size
        self._row = DetectionRows(size)
        self._program = functools.cache(self._compiled)

    def _compiled(self, score_threshold):
        options = self.detector.options.scoring_above(score_threshold)
        detector = dataclasses.replace(self.detector, options=options)
        return jax.jit(lambda variables, batch: detector.apply(variables, batch, None))

    def predict(
        self,
        images: Iterable,
        score: float = 0.05,
        batch_size: int = 8,
        max_pixels: int = image_files.MAX_PIXELS,
    ) -> list[Prediction]:
        """Return the detections in every image, in the order of the images.

        Args:
          images: file names, Pillow images, or uint8 arrays, [H, W, 3] RGB, [H, W] grey, or
            [H, W, 1 or 4]; of any sizes. No images give an empty list. Files and Pillow images are
            turned as their EXIF orientation says.
          score: smallest score of a detection.
          batch_size: largest number of images in a call; images are read as they are needed.
          max_pixels: pixels of the largest file that is decoded.

        Raises:
          UserError: a file is missing, broken, cut off or too large, an array or Pillow image is
            none that can be read, or the detector's scores are not finite.
        """
        if not (isinstance(score, int | float) and 0 <= score <= 1):
            raise UserError("predict", "score", f"{score!r}", "give a number of 0 to 1")
        if not (isinstance(batch_size, int) and batch_size >= 1):
            raise UserError(
                "predict", "batch_size", f"{batch_size!r}", "give a whole number from 1"
            )
        single = isinstance(images, str | os.PathLike | PIL.Image.Image)
        if single or getattr(images, "ndim", 4) < 4:
            raise UserError("predict", "images", "one image", "give a list of images")
        predictions: dict[int, Prediction] = {}
        waiting = {False: [], True: []}  # landscape and portrait images have different canvases
        num_images = 0
        for index, image in enumerate(images):
            num_images += 1
            image = read_image(image, max_pixels)
            batch = waiting[image.shape[0] > image.shape[1]]
            batch.append((index, image))
            if len(batch) == batch_size:
                predictions |= self._predict(batch, score)
                batch.clear()
        for batch in waiting.values():
            predictions |= self._predict(batch, score)
        return [predictions[index] for index in range(num_images)]

    def _predict(self, images, min_score):
        """Return the predictions of images of one orientation, by index."""
        if not images:
            return {}
        rng = np.random.default_rng(0)  # no row draws from it
        rows = []
        for index, image in images:
            portrait = image.shape[0] > image.shape[1]
            record = {"image": image, **objects_record(index, [])}
            row = self._row(record, portrait, rng)
            rows.append({**row, "weight": np.float32(1)})
        # The batch is padded to a power of two, so that few programs serve any number of images.
        padding = (1 << (len(rows) - 1).bit_length()) - len(rows)
        rows += [{**rows[0], "weight": np.float32(0)}] * padding
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        # Below the detector's own threshold another program is needed, above it the detections are
        # the same ones.
        run = self._program(min(min_score, self.detector.options.score_threshold))
        outputs = jax.device_get(run(self.variables, put_batch(local_mesh(), batch)))
        detections = compact_detections(outputs, batch)
        predictions = {}
        for index, image in images:
            chosen = (detections["image_id"] == index) & (detections["scores"] >= min_score)
            labels = detections["labels"][chosen]
            predictions[index] = Prediction(
                boxes=detections["boxes"][chosen],
                scores=detections["scores"][chosen],
                labels=labels,
                category_ids=np.array(self.category_ids)[labels - 1],
                class_names=[self.class_names[label - 1] for label in labels],
                height=image.shape[0],
                width=image.shape[1],
                mask_cells=detections["masks"][chosen] if "masks" in detections else None,
            )
        return predictions


def read_image(image, max_pixels: int = image_files.MAX_PIXELS) -> np.ndarray:
    """Return an image as uint8 [H, W, 3] RGB; arguments and errors as in `Predictor.predict`."""
    if isinstance(image, str | os.PathLike):
        return image_files.read(image, max_pixels)
    if isinstance(image, PIL.Image.Image):
        return image_files.from_pillow(image)
    pixels = np.asarray(image)
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


def predictions_to_coco(
    names: list[str], predictions: list[Prediction], category_ids: list[int], class_names: list[str]
) -> dict:
    """Convert predictions to one COCO object: images, categories, and annotations with scores.

    Masks are run-length coded, and `area` is then the area of the mask.

    Args:
      names: file names of the images.
      predictions: predictions for the images.
      category_ids: category ids of the labels 1..C.
      class_names: class names of the labels 1..C.
    """
    images, annotations = [], []
    for image_id, (name, prediction) in enumerate(zip(names, predictions, strict=True), 1):
        height, width = prediction.height, prediction.width
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        detections = zip(
            prediction.boxes.tolist(),
            prediction.scores.tolist(),
            prediction.category_ids.tolist(),
            strict=True,
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
            if prediction.mask_cells is not None:
                mask = prediction.mask(index)
                annotation |= {"segmentation": masks.encode(mask), "area": int(mask.sum())}
            annotations.append(annotation)
    categories = category_entries(category_ids, class_names)
    return {"images": images, "categories": categories, "annotations": annotations}


def join_turns(parts: list[dict]) -> dict:
    """Join what `predictions_to_coco` made on hosts that took the images in turns."""
    images, annotations = [], []
    by_image = [collections.defaultdict(list) for _ in parts]
    for part, rows in zip(parts, by_image, strict=True):
        for row in part["annotations"]:
            rows[row["image_id"]].append(row)
    for number in range(sum(len(part["images"]) for part in parts)):
        position, host = divmod(number, len(parts))
        image = parts[host]["images"][position]
        images.append({**image, "id": number + 1})
        for row in by_image[host][image["id"]]:
            annotations.append({**row, "id": len(annotations) + 1, "image_id": number + 1})
    return {**parts[0], "images": images, "annotations": annotations}


def list_images(path: str | pathlib.Path) -> list[pathlib.Path]:
    """Return a file itself, or the images in a folder and its subfolders, sorted by path.

    Links are followed, each folder once.

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
    files, seen = [], set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            subfolders.clear()
            continue
        seen.add(real)
        files += map(pathlib.Path(folder).joinpath, names)
    return sorted(filter(image_files.is_image, files))
