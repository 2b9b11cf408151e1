"""Run a trained detector on photographs and write its detections as COCO json.

python scripts/predict.py --detector=runs/bccd/searched --images=photos --output=detections.json

Boxes are in the pixels of the image as a viewer shows it, EXIF rotation applied.
"""

import pathlib

from absl import flags

import crnas_jax
from crnas_jax import cli
from crnas_jax.errors import UserError
from crnas_jax.evaluation.predict import list_images, predictions_to_coco
from crnas_jax.runtime.files import write_json

_DETECTOR = flags.DEFINE_string("detector", None, "Folder with detector.json and variables/.")
_IMAGES = flags.DEFINE_multi_string("images", None, "An image or a folder; may be repeated.")
_OUTPUT = flags.DEFINE_string("output", None, "json file to write.")
_SCORE = flags.DEFINE_float("score", 0.05, "Smallest score of a detection.", 0.0, 1.0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Largest number of images in a call.", 1)


def main():
    output = pathlib.Path(_OUTPUT.value)
    if not _OUTPUT.value or output.is_dir() or not output.absolute().parent.is_dir():
        raise UserError(
            _OUTPUT.value, "--output", "no file in an existing folder", "name the json to write"
        )
    files = [file for path in _IMAGES.value for file in list_images(path)]
    detector = crnas_jax.load_detector(_DETECTOR.value)
    predictions = detector.predict(files, _SCORE.value, _BATCH_SIZE.value)
    result = predictions_to_coco(
        [str(file) for file in files], predictions, detector.category_ids, detector.class_names
    )
    write_json(output, result)
    note = "" if files else f" (there are no images in {', '.join(_IMAGES.value)})"
    print(f"{len(result['annotations'])} detections in {len(files)} images{note}: {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run_script(main, ["detector", "images", "output"])
