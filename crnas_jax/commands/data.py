"""Subcommands that prepare data sets."""

import hashlib
import json
import pathlib

from absl import flags

from crnas_jax.commands.command import Command
from crnas_jax.data.images import MAX_PIXELS
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import write_json

_DATA_SETS = ("coco", "voc", "imagenet", "inaturalist", "tfrecord")


def _prepare_flags(values, _):
    text = (
        "Layout of the source: COCO's, VOC's, one folder for each class (imagenet), iNaturalist's, "
        "or TFDS's TFRecords to convert."
    )
    flags.DEFINE_enum("dataset", None, _DATA_SETS, text, flag_values=values)
    text = "Folder with the published archives, or with what is in them."
    flags.DEFINE_string("source", None, text, flag_values=values)
    flags.DEFINE_string("output", None, "Folder of the records; a new one.", flag_values=values)
    text = (
        "NAME=WHAT, once for each split; the published ones when left out. WHAT is "
        "ANNOTATIONS.json:IMAGES (coco), VOC2007/trainval+VOC2012/trainval (voc), a folder of "
        "folders by class (imagenet), or a json file (inaturalist)."
    )
    flags.DEFINE_multi_string("split", [], text, flag_values=values)
    text = "Names of the classes (voc); VOC's 20 when left out."
    flags.DEFINE_list("class_names", [], text, flag_values=values)
    text = "Size of a shard, roughly, in MB."
    flags.DEFINE_integer("shard_mb", 256, text, 1, flag_values=values)
    text = "Take archives whose SHA-256 is not that of the published ones."
    flags.DEFINE_bool("any_archives", False, text, flag_values=values)
    text = "Pixels of the largest image that is taken."
    flags.DEFINE_integer("max_pixels", MAX_PIXELS, text, 1, flag_values=values)


def _prepare(values):
    from crnas_jax.data.records import originals, tfrecord
    from crnas_jax.data.records.writer import prepare

    given = list(map(_split_of_flag, values.split))
    splits = dict(given)
    if len(splits) < len(given):
        problem = f"{given[-1][0]} comes twice"
        raise UserError("command line", "--split", problem, "join its parts, or give another name")
    if values.dataset == "tfrecord":
        for name in ("split", "class_names"):
            if values[name].value:
                problem = "tfrecord takes them from the source"
                raise UserError("command line", f"--{name}", problem, "leave it out")
        data_set = tfrecord.data_set(values.source)
    else:
        data_set = originals.open_original(
            values.dataset, values.source, splits, values.class_names, values.any_archives
        )
    prepare(data_set, values.output, values.shard_mb * 2**20, values.max_pixels)
    print("flags to read them: " + _flags(data_set, values.output))


def _flags(data_set, output):
    """Return the flags of a run on records."""
    fields = {"name": "tfds", "folder": output}
    for field, split in (
        ("train", "train"),
        ("val", "validation"),
        ("val", "val"),
        ("test", "test"),
    ):
        if split in data_set.splits:
            fields[field] = split
    return " ".join(
        f"--config.{data_set.meaning.section}.{field}={value}" for field, value in fields.items()
    )


def _split_of_flag(text):
    name, equals, what = text.partition("=")
    if not equals or not name.isidentifier() or name == "all" or not what:
        remedy = "give NAME=WHAT, such as train=train.json:images"
        raise UserError("command line", "--split", f"{text!r}", remedy)
    return name, what


def _split_flags(values, _):
    flags.DEFINE_string("annotations", None, "json file to split.", flag_values=values)
    text = "Number of images in archval."
    flags.DEFINE_integer("number", 5000, text, 1, flag_values=values)


def _split(values):
    file = pathlib.Path(values.annotations)
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
    if len(ids) <= values.number:
        raise UserError(file, "images", f"only {len(ids)}", "lower --number")
    drawn = set(ids[: values.number])
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


COMMANDS = {
    "prepare-data": Command(
        "Write COCO, VOC, ImageNet, iNaturalist or data of your own as records.",
        "--dataset=coco --source=downloads --output=records/coco",
        _prepare_flags,
        _prepare,
        ("dataset", "source", "output"),
    ),
    "split-coco": Command(
        "Split COCO's training annotations for the search, as in the paper.",
        "--annotations=data/coco/annotations/instances_train2017.json",
        _split_flags,
        _split,
        ("annotations",),
    ),
}
