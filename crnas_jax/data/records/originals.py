"""Public data sets as they are published: their archives, and how they become records."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import load_url_infos

from crnas_jax.data.classification import FolderSource
from crnas_jax.data.coco import CocoSource
from crnas_jax.data.images import is_image
from crnas_jax.data.paths import leads_out
from crnas_jax.data.records.archives import ArchivePath, ArchiveTree
from crnas_jax.data.records.builders import classification_data_set, detection_data_set
from crnas_jax.data.records.writer import DataSet
from crnas_jax.data.voc import VocSource
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import read_regular
from crnas_jax.runtime.progress import Progress

_TFDS = pathlib.Path(tfds.__file__).parent
_VALIDATION_LABELS = _TFDS / "datasets/imagenet2012/validation_labels.txt"
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class Original:
    """A data set as it is published.

    Attributes:
      archives: by name of an archive the folder that its files belong into; "" for none.
      checksums: TFDS's list of their SHA-256 sums, inside its package.
      splits: what each split is made of, by name.
      open: function of (root of the files, splits, names of the classes or None).
    """

    archives: Mapping[str, str]
    checksums: str
    splits: Mapping[str, str]
    open: Callable[[ArchivePath, Mapping[str, str], Sequence[str] | None], DataSet]


def _coco(root, splits, class_names):
    if class_names:
        raise _no_class_names("coco")
    sources = {}
    for split, text in splits.items():
        annotations, _, images = text.partition(":")
        if not _below(root, annotations).exists():
            remedy = "give yours, such as --split=train=train.json:images"
            raise UserError("command line", "--split", f"there is no {root / annotations}", remedy)
        sources[split] = CocoSource(_below(root, images or "images"), _below(root, annotations))
    return detection_data_set("coco", sources)


def _below(root, text):
    """Return a path of the command line: in the source, unless it says where."""
    path = pathlib.Path(text).expanduser()
    return path if path.is_absolute() else root / text


def _voc(root, splits, class_names):
    root = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    sources = {split: VocSource(root, text, class_names) for split, text in splits.items()}
    return detection_data_set("voc", sources)


def _imagenet(root, splits, class_names):
    if class_names:
        raise _no_class_names("imagenet")
    files, names = {}, {}
    for split, text in splits.items():
        folder = _below(root, text)
        if folder.is_dir() and any(map(is_image, folder.iterdir())):
            names[split], files[split] = None, _validation_files(folder)
        else:
            source = FolderSource(folder)
            names[split], files[split] = source.class_names, source.files
    return classification_data_set("imagenet", *_with_common_classes(names, files))


def _with_common_classes(names, files):
    """Return the classes of all splits, and (path, label) of their images.

    Files of ImageNet's validation archive come with the name of their class, since the archive has
    no folders.
    """
    known = {split: tuple(classes) for split, classes in names.items() if classes is not None}
    if len(set(known.values())) > 1:
        problem = f"{' and '.join(known)} have other classes"
        raise UserError("command line", "--split", problem, "give all the same folders")
    labels = sorted({label for split in names.keys() - known for _, label in files[split]})
    class_names = next(iter(known.values()), tuple(labels))
    missing = set(labels) - set(class_names)
    if missing:
        problem = f"class {min(missing)} of the validation images is none of the others'"
        raise UserError("command line", "--split", problem, "give the same classes")
    for split in names.keys() - known:
        files[split] = [(path, class_names.index(label)) for path, label in files[split]]
    return class_names, files


def _validation_files(folder):
    """Return (path, name of its class) of ILSVRC2012's validation images, whose names count."""
    classes, files = _VALIDATION_LABELS.read_text().split(), []
    for path in sorted(filter(is_image, folder.iterdir())):
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})", path.stem)
        if number is None or not 1 <= int(number[1]) <= len(classes):
            remedy = "give one subfolder for each class"
            raise UserError(path, "name", "it is none of ILSVRC2012's validation images", remedy)
        files.append((path, classes[int(number[1]) - 1]))
    return files


def _inaturalist(root, splits, class_names):
    if class_names:
        raise _no_class_names("inaturalist")
    names, files = {}, {}
    for split, text in splits.items():
        names[split], files[split] = _listed_images(root, _below(root, text))
    return classification_data_set("inaturalist", *_with_common_classes(names, files))


def _listed_images(root, file):
    """Return the classes, and (path, label) of the images, of a list in iNaturalist's format."""
    try:
        content = json.loads(read_regular(file))
        category_ids = sorted(category["id"] for category in content["categories"])
        name_of = {category["id"]: str(category["name"]) for category in content["categories"]}
        label_of = {category: label for label, category in enumerate(category_ids)}
        labels = {
            entry["image_id"]: label_of[entry["category_id"]] for entry in content["annotations"]
        }
        images = sorted(content["images"], key=lambda image: image["id"])
        for image in images:
            if leads_out(image["file_name"]):
                problem = f"{image['file_name'][:80]!r} leads out of {root}"
                remedy = "give a path inside the folder"
                raise UserError(file, "images.file_name", problem, remedy)
        files = [(root / image["file_name"], labels[image["id"]]) for image in images]
    except OSError as error:
        raise UserError(file, "file", error.strerror or "unreadable", "restore it") from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {str(error)[:80]}"
        raise UserError(file, "json", problem, "give a list in iNaturalist's format") from error
    return [name_of[category] for category in category_ids], files


def _no_class_names(name):
    problem = f"{name} says them itself"
    return UserError("command line", "--class_names", problem, "leave it out")


ORIGINALS = {
    "coco": Original(
        {"train2017.zip": "", "val2017.zip": "", "annotations_trainval2017.zip": ""},
        "url_checksums/coco.txt",
        {
            "train": "annotations/instances_train2017.json:train2017",
            "validation": "annotations/instances_val2017.json:val2017",
        },
        _coco,
    ),
    "voc": Original(
        {
            "VOCtrainval_06-Nov-2007.tar": "",
            "VOCtest_06-Nov-2007.tar": "",
            "VOCtrainval_11-May-2012.tar": "",
        },
        "url_checksums/voc.txt",
        {"train": "VOC2007/trainval+VOC2012/trainval", "test": "VOC2007/test"},
        _voc,
    ),
    "imagenet": Original(
        {"ILSVRC2012_img_train.tar": "train/", "ILSVRC2012_img_val.tar": "val/"},
        "datasets/imagenet2012/checksums.tsv",
        {"train": "train", "validation": "val"},
        _imagenet,
    ),
    "inaturalist": Original(
        {"train_val_images.tar.gz": "", "train_val2017.zip": ""},
        "url_checksums/i_naturalist2017.txt",
        {"train": "train2017.json", "validation": "val2017.json"},
        _inaturalist,
    ),
}


def open_original(
    name: str,
    source: str | pathlib.Path,
    splits: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    any_archives: bool = False,
) -> DataSet:
    """Describe a published data set, or one of one's own in its layout, as one to write.

    Args:
      name: one of `ORIGINALS`.
      source: folder with the archives, or with what is in them.
      splits: what each split is made of, by name; None for the published ones.
      class_names: names of VOC's classes; None for the published ones.
      any_archives: whether archives may have another content than the published ones.

    Raises:
      UserError: a file is missing, damaged, or not the published one.
    """
    original, source = ORIGINALS[name], pathlib.Path(source).expanduser()
    if not source.is_dir():
        raise UserError(source, "--source", "no such folder", "name the folder of the archives")
    if not any_archives:
        _require_published(original, source)
    root = ArchiveTree(source, original.archives).root
    return original.open(root, splits or original.splits, class_names or None)


def _require_published(original, source):
    """Raise UserError unless the archives that are there are the published ones."""
    published = {}
    for url, info in load_url_infos(_TFDS / original.checksums).items():
        published[url.rsplit("/", 1)[1]] = info
    for name in original.archives:
        path = source / name
        if not path.is_file():
            continue
        info, size = published[name], path.stat().st_size
        problem = f"{size} bytes, the published archive has {int(info.size)}"
        if size == int(info.size):
            problem = "another SHA-256 than the published archive"
            if _sha256(path) == info.checksum:
                continue
        remedy = "download it again, or give --any_archives for a selection of your own"
        raise UserError(path, "archive", problem, remedy)


def _sha256(path):
    sha = hashlib.sha256()
    progress = Progress(f"SHA-256 of {path}", path.stat().st_size, unit="byte", beginning="reading")
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
            progress.update(file.tell())
    progress.close()
    return sha.hexdigest()
