"""Splits COCO's training annotations for the search: 5,000 images for archval, the rest archtrain.

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
from crnas_jax.runtime.workdir import write_json

_ANNOTATIONS = flags.DEFINE_string("annotations", None, "The json to split.")
_NUMBER = flags.DEFINE_integer("number", 5000, "Images of archval.", 1)


def main():
    file = pathlib.Path(_ANNOTATIONS.value)
    outputs = {name: file.parent / f"{name}.json" for name in ("archtrain", "archval")}
    for output in outputs.values():
        if output.exists():
            raise UserError(output, "file", "is there already", "remove it first")
    try:
        content = json.loads(file.read_bytes())
        images, annotations = content["images"], content["annotations"]
        ids = sorted((int(image["id"]) for image in images), key=_hash)
        owners = [int(annotation["image_id"]) for annotation in annotations]
    except OSError as error:
        raise UserError(file, "file", error.strerror or "unreadable", "name COCO's json") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(file, "json", str(error), "give COCO's instances_train2017.json") from error
    if len(ids) <= _NUMBER.value:
        raise UserError(file, "images", f"only {len(ids)}", "lower --number")
    drawn = set(ids[: _NUMBER.value])
    for name, output in outputs.items():
        wanted = name == "archval"
        part = {
            "images": [image for image in images if (image["id"] in drawn) == wanted],
            "annotations": [
                annotation
                for annotation, owner in zip(annotations, owners, strict=True)
                if (owner in drawn) == wanted
            ],
        }
        write_json(output, {**content, **part})
        print(f"{output}: {len(part['images'])} images, {len(part['annotations'])} objects")


def _hash(image_id):
    return hashlib.sha256(str(image_id).encode()).hexdigest()


if __name__ == "__main__":
    cli.run_script(main, ["annotations"])
