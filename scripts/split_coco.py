"""Split COCO's training annotations for the search: 5,000 images for archval, the rest archtrain.

python scripts/split_coco.py --annotations=data/coco/annotations/instances_train2017.json

Writes archtrain.json and archval.json beside the file. Which images are drawn depends on their ids
alone (paper, section 4: 130K and 5K of trainval135K).
"""

import hashlib
import json
import pathlib

from absl import flags

from crnas_jax import cli
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import write_json

_ANNOTATIONS = flags.DEFINE_string("annotations", None, "json file to split.")
_NUM_IMAGES = flags.DEFINE_integer("number", 5000, "Number of images in archval.", 1)


def main():
    file = pathlib.Path(_ANNOTATIONS.value)
    outputs = {name: file.parent / f"{name}.json" for name in ("archtrain", "archval")}
    for output in outputs.values():
        if output.exists():
            raise UserError(output, "file", "it exists already", "remove it first")
    try:
        content = json.loads(file.read_bytes())
        images, annotations = content["images"], content["annotations"]
        ids = sorted((int(image["id"]) for image in images), key=_hash)
        image_ids = [int(annotation["image_id"]) for annotation in annotations]
    except OSError as error:
        raise UserError(file, "file", error.strerror or "unreadable", "name COCO's json") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(file, "json", str(error), "give COCO's instances_train2017.json") from error
    if len(ids) <= _NUM_IMAGES.value:
        raise UserError(file, "images", f"only {len(ids)}", "lower --number")
    drawn = set(ids[: _NUM_IMAGES.value])
    for name, output in outputs.items():
        in_archval = name == "archval"
        part = {
            "images": [image for image in images if (image["id"] in drawn) == in_archval],
            "annotations": [
                annotation
                for annotation, image_id in zip(annotations, image_ids, strict=True)
                if (image_id in drawn) == in_archval
            ],
        }
        write_json(output, {**content, **part})
        print(f"{output}: {len(part['images'])} images, {len(part['annotations'])} objects")


def _hash(image_id):
    return hashlib.sha256(str(image_id).encode()).hexdigest()


if __name__ == "__main__":
    cli.run_script(main, ["annotations"])
