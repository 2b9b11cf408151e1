"""Read detection data in PASCAL VOC's layout: lists of images, and one XML file per image."""

import hashlib
import math
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from crnas_jax.data.coco import CocoSource, category_entries
from crnas_jax.data.images import MAX_PIXELS, SUFFIXES
from crnas_jax.data.orientation import AUTO
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import as_path, exists, read_regular

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


class VocSource(CocoSource):
    """Random access to one split, with the attributes and records of `CocoSource`.

    Difficult objects have `crowd` set in the records, so that they are no ground truth in training;
    in `coco` they have `difficult` set, for `crnas_jax.evaluation.voc`.

    Attributes:
      digest: SHA-256 of the lists and the XML files, in hexadecimal.
    """

    ignore_fields = ("iscrowd", "difficult")
    metrics = ("coco", "voc")

    def __init__(
        self,
        folder: str | pathlib.Path,
        split: str,
        class_names: Sequence[str] | None = None,
        strict: bool = False,
        exif: str = AUTO,
        max_pixels: int = MAX_PIXELS,
    ):
        """Read the lists and the XML files; images are read one by one later.

        Args:
          folder: path of the VOCdevkit.
          split: parts `<year>/<list>` joined by "+", such as "VOC2007/trainval+VOC2012/trainval".
          class_names: names of the categories 1..C; None for VOC's 20.
          strict: whether boxes that would be skipped or clipped raise an error instead.
          exif: see `CocoSource`.
          max_pixels: see `CocoSource`.

        Raises:
          UserError: `voc_annotations` raises it, or, with `strict`, a box has no size or extends
            beyond its image.
        """
        self._split, self._voc_class_names = split, class_names
        super().__init__(folder, as_path(folder) / split, strict, exif=exif, max_pixels=max_pixels)

    def _load(self):
        return voc_annotations(self._folder, self._split, self._voc_class_names)

    def _fault(self, field, problem, remedy="give a PASCAL VOC data set"):
        # Annotations are made from XML files, so the error names the object in its XML file.
        match = re.match(r"annotations\[(\d+)\]", field)
        if not match:
            return UserError(self.place, field, problem, remedy)
        annotation = int(match[1])
        image_ids = [entry["image_id"] for entry in self.coco["annotations"]]
        image_id = image_ids[annotation]
        index_in_file = image_ids[:annotation].count(image_id)
        xml = self.coco["images"][image_id - 1]["xml"]
        return UserError(xml, f"object[{index_in_file}].bndbox", problem, remedy)

    def notes(self) -> list[str]:
        """Say what is left out, changed or chosen, and whether XML files name other images."""
        named = [image["named"] for image in self.coco["images"]]
        names = [pathlib.PurePosixPath(image["file_name"]).name for image in self.coco["images"]]
        num_others = sum(a not in ("", b) for a, b in zip(named, names, strict=True))
        notes = super().notes()
        num_zero = sum(min(entry["bbox"][:2]) == -1 for entry in self.coco["annotations"])
        if num_zero:
            notes.append(
                f"WARNING: {num_zero} boxes begin at pixel 0, and VOC's pixels count from 1: if "
                "these count from 0, all objects lie one pixel off"
            )
        if num_others:
            notes.append(
                f"{num_others} XML files name another image in <filename>; the list's name decides"
            )
        return notes

    def _size_fault(self, index, height, width):
        xml = self.coco["images"][index]["xml"]
        problem = f"{self.image_names[index]} has {height} x {width} pixels"
        return UserError(xml, "size", problem, "correct height and width there")


def voc_annotations(
    folder: str | pathlib.Path, split: str, class_names: Sequence[str] | None = None
) -> tuple[dict, str]:
    """Read one split as the content of a COCO annotation file.

    Images are numbered from 1 in the order of the lists. As in the devkit, the name in the list
    names image and XML file; `<filename>` need not be there. `file_name` is relative to `folder`,
    `xml` is the path of the image's XML file, `named` what stands in `<filename>`. VOC's boxes are
    1-based pixels with both ends included: a `bbox` is [xmin - 1, ymin - 1, xmax - xmin + 1,
    ymax - ymin + 1]. A difficult object has `difficult` and `ignore` 1 and `iscrowd` 0.

    Args:
      folder: path of the VOCdevkit.
      split: parts `<year>/<list>` joined by "+", such as "VOC2007/trainval+VOC2012/trainval".
      class_names: names of the categories 1..C; None for VOC's 20.

    Returns:
      The content, and the SHA-256 of the lists and XML files in hexadecimal.

    Raises:
      UserError: a list or an XML file is missing or broken, lacks a required element, has an
        unknown class or is listed twice; or the split has no image or no object.
    """
    class_names = list(CLASS_NAMES if class_names is None else class_names)
    categories = category_entries(list(range(1, len(class_names) + 1)), class_names)
    category_of = {name: category_id for category_id, name in enumerate(class_names, 1)}
    coco = {"images": [], "annotations": [], "categories": categories}
    digest, file_names = hashlib.sha256(), set()
    for part in split.split("+"):
        year, _, name = part.rpartition("/")
        if not year or not name:
            raise UserError(
                folder, "split", f"{part!r} is no <year>/<list>", "give such as VOC2007/trainval"
            )
        year_folder = as_path(folder) / year
        for line in _lines(year_folder / "ImageSets" / "Main" / f"{name}.txt", digest):
            stem = _stem(year_folder / "Annotations", line)
            file = year_folder / "Annotations" / f"{stem}.xml"
            root = _parse(file, _read(file, digest))
            image, objects = _image(root), _objects(root, category_of)
            name = _image_name(file, year_folder / "JPEGImages", stem, image["named"])
            image["file_name"] = f"{year}/JPEGImages/{name}"
            if image["file_name"] in file_names:
                problem = f"{image['file_name']} comes twice in {split}"
                raise UserError(file, "image", problem, "list each image once")
            file_names.add(image["file_name"])
            coco["images"].append({"id": len(coco["images"]) + 1, **image})
            coco["annotations"] += [
                {"id": annotation_id, "image_id": len(coco["images"]), **entry}
                for annotation_id, entry in enumerate(objects, len(coco["annotations"]) + 1)
            ]
    if not coco["annotations"]:
        raise UserError(folder, split, "no object in it", "label at least one image")
    return coco, digest.hexdigest()


def _read(path, digest):
    try:
        content = read_regular(path)
    except OSError as error:
        problem = error.strerror or "unreadable"
        raise UserError(path, "file", problem, "restore it, or give another split") from error
    # Each file is hashed by itself, so that moving bytes from one file to the next changes the
    # digest.
    digest.update(hashlib.sha256(content).digest())
    return content


def _lines(path, digest):
    """Read the lines of a list that are not empty."""
    try:
        lines = _read(path, digest).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(path, "text", str(error), "give a text file in UTF-8") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise UserError(path, "images", "there are none", "give at least one image")
    for line in lines:
        _require_name(path, "images", line)
    return lines


def _stem(folder, line):
    """Return the name of an image in a line of a list.

    Lists of one class have a second column: 1 where it is there, 0 where it is difficult, or -1.
    Names may have spaces, so the whole line is one where there is such a file.
    """
    is_name = exists(folder / f"{line}.xml")
    return line if is_name else re.sub(r"\s+(-1|0|1)$", "", line)


def _image_name(file, folder, stem, named):
    """Return the name of an image: `stem` with the suffix of `<filename>`, or one that is there."""
    suffixes = [pathlib.PurePosixPath(named).suffix, ".jpg", *SUFFIXES]
    suffixes += [suffix.upper() for suffix in SUFFIXES]
    names = [stem + suffix for suffix in suffixes if suffix.lower() in SUFFIXES]
    name = next((name for name in names if exists(folder / name)), None)
    if name is None:
        problem = f"missing: {folder} has no {stem}.jpg, nor with another suffix"
        raise UserError(file, "image", problem, "restore it, or remove it from the list")
    return name


def _require_name(path, field, name):
    """Raise UserError unless a name read from a file is a plain file name without folders."""
    if any(character in name for character in "/\\\0") or name in ("", ".", ".."):
        problem = f"{name[:80]!r} is not a file name"
        raise UserError(path, field, problem, "give it without folders")


class _NoDoctype(ElementTree.TreeBuilder):
    """Tree builder that refuses document types: VOC has none, and entity bombs fill the memory."""

    def doctype(self, name, public, system):
        raise ValueError("it declares a document type")


class _Node:
    """An XML element with its file and its place in it, for error messages."""

    def __init__(self, file, element, place=""):
        self.file, self._element, self._place = file, element, place

    def fault(self, tag, problem, remedy):
        return UserError(self.file, self._place + tag, problem, remedy)

    def has(self, tag):
        return self._element.find(tag) is not None

    def children(self, tag):
        return [
            _Node(self.file, element, f"{self._place}{tag}[{index}].")
            for index, element in enumerate(self._element.findall(tag))
        ]

    def child(self, tag):
        element = self._element.find(tag)
        if element is None:
            raise self.fault(tag, "missing", "give it")
        return _Node(self.file, element, f"{self._place}{tag}.")

    def text_or_empty(self, tag):
        return (self._element.findtext(tag) or "").strip()

    def text(self, tag):
        text = self.text_or_empty(tag)
        if not text:
            raise self.fault(tag, "missing", "give it")
        return text

    def number(self, tag):
        text = self.text(tag)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) < 1e9:
            raise self.fault(tag, f"{text[:40]!r} is not a valid number", "give pixels")
        return int(value) if value.is_integer() else value


def _parse(file, content):
    remedy = "give a PASCAL VOC annotation file"
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(file, "xml", str(error), remedy) from error
    if root.tag != "annotation":
        raise UserError(file, "xml", f"<{root.tag[:40]}> is not <annotation>", remedy)
    return _Node(file, root)


def _image(root):
    """Read the entry of an image, without its id."""
    size, image = root.child("size"), {"named": root.text_or_empty("filename")}
    image["xml"] = str(root.file)
    for side in ("height", "width"):
        image[side] = size.number(side)
        if type(image[side]) is not int or image[side] < 1:
            raise size.fault(side, f"{image[side]}", "give a whole number of at least 1")
    return image


def _objects(root, category_of):
    """Read the entries of the objects, without ids."""
    objects = []
    for node in root.children("object"):
        name = node.text("name")
        if name not in category_of:
            problem = f"{name[:80]!r} is not a class"
            raise node.fault("name", problem, "correct it, or give the names of all classes")
        difficult = node.number("difficult") if node.has("difficult") else 0
        if difficult not in (0, 1):
            raise node.fault("difficult", f"{difficult}", "give 0 or 1")
        # A direct child, since the parts of a person have boxes too.
        box = node.child("bndbox")
        x0, y0, x1, y1 = (box.number(tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
        width, height = x1 - x0 + 1, y1 - y0 + 1
        objects.append(
            {
                "category_id": category_of[name],
                "bbox": [x0 - 1, y0 - 1, width, height],
                "area": max(width, 0) * max(height, 0),
                "iscrowd": 0,
                "ignore": difficult,
                "difficult": difficult,
            }
        )
    return objects
