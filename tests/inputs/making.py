"""What people bring, as cases: how the input is made, what happens, and who reported it.

Every case starts from a good data set of two images in each split. Every object is a red rectangle
on dark noise, so that a check sees in the pixels whether a box lies on its object.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from crnas_jax.data.build import DataOptions, detection_source

SPLITS = ("train", "val", "test")
H, W, BOX = 40, 60, [4, 5, 20, 10]  # rows, columns; box as x, y, width, height
RED = (220, 20, 20)


STORED, SHOWN = ("--config.data.exif=stored",), ("--config.data.exif=shown",)
MASKS = ("--config.detector.kind=mask_rcnn",)
VOC = (
    "--config.data.name=voc",
    *(f"--config.data.{split}=VOC2007/{split}" for split in SPLITS),
    "--config.data.class_names=('cell',)",
)
# All cases, by module and name.
CASES = {}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of docs/inputs.md.

    Attributes:
      input: what people bring.
      make: function that writes it into a folder.
      happens: what happens, unless it is refused.
      refused: words of the one line that refuses it; "" where it is accepted.
      says: words of the output.
      check: function of the folder that asserts what is right.
      flags: flags of the command.
      command: the command; `plan` reads config and data.
      report: public report of somebody who met it.
      is_noted: whether a line of the standard error says what is left out.
      is_late: whether it is refused after work began, with files of that beside what was there.
      test: the test that holds it, where that is another one.
    """

    input: str
    make: Callable[[pathlib.Path], object]
    happens: str = ""
    refused: str = ""
    says: str = ""
    check: Callable[[pathlib.Path], None] | None = None
    flags: tuple[str, ...] = ()
    command: str = "plan"
    report: str = ""
    is_noted: bool = False
    is_late: bool = False
    test: str = ""


def cases(module, **defaults):
    """Return the decorator that enters a function as a case of a module, under its name."""

    def case(text, name="", **fields):
        def enter(make):
            CASES[f"{module}.{name or make.__name__}"] = Case(text, make, **{**defaults, **fields})
            return make

        return enter

    return case


_count = iter(range(10**6))


def pixels(height=H, width=W, box=BOX):
    rng = np.random.default_rng(next(_count))
    image = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    x, y, w, h = map(int, box)
    image[y : y + h, x : x + w] = RED
    return image


def good(folder, change=None, box=BOX):
    """Write the good data set; `change(coco)` alters the content of train.json."""
    folder = pathlib.Path(folder)
    (folder / "images").mkdir(parents=True)
    for split in SPLITS:
        images, objects = [], []
        for i in (1, 2):
            name = f"{split}{i}.png"
            Image.fromarray(pixels(box=box)).save(folder / "images" / name)
            images.append({"id": i, "file_name": name, "height": H, "width": W})
            area = box[2] * box[3]
            entry = {"id": i, "image_id": i, "category_id": 5, "bbox": list(box), "area": area}
            objects.append({**entry, "iscrowd": 0})
        categories = [{"id": 5, "name": "cell"}]
        coco = {"images": images, "annotations": objects, "categories": categories}
        write(folder, split, coco)
    if change:
        coco = read(folder)
        change(coco)
        write(folder, "train", coco)
    return folder


def read(folder, split="train"):
    return json.loads((pathlib.Path(folder) / f"{split}.json").read_text())


def write(folder, split, coco):
    (pathlib.Path(folder) / f"{split}.json").write_text(json.dumps(coco))


def all_splits(folder, change):
    """Apply `change` to the json of all three splits."""
    for split in SPLITS:
        coco = read(folder, split)
        change(coco)
        write(folder, split, coco)
    return folder


def annotations(**fields):
    return lambda coco: [entry.update(fields) for entry in coco["annotations"]]


def without(key, field):
    return lambda coco: [entry.pop(field) for entry in coco[key]]


def source(folder, split="train", voc=False, **options):
    """Open a split as a run does."""
    if voc:
        options |= {"name": "voc", "class_names": ("cell",), split: f"VOC2007/{split}"}
    else:
        options |= {"name": "coco", split: f"{split}.json"}
    return detection_source(DataOptions(folder=str(folder), **options), split)


def boxes_fit(folder, voc=False, index=0, **options):
    """Assert that the first box of an image covers its object, and nothing else does."""
    record = source(folder, voc=voc, **options)[index]
    x0, y0, x1, y1 = record["boxes"][0].round().astype(int)
    is_object = record["image"][..., 0] > 128
    assert is_object[y0:y1, x0:x1].mean() > 0.95
    assert is_object.sum() < 1.1 * (x1 - x0) * (y1 - y0)


def boxes_fit_voc(folder):
    boxes_fit(folder, voc=True)


def replace_image(folder, save, name="train1.png", size=(H, W), box=BOX, image=None):
    """Replace image 1 of train by what `save(image, path)` writes, and its entry."""
    folder = good(folder)
    coco = read(folder)
    coco["images"][0].update(file_name=name, height=size[0], width=size[1])
    coco["annotations"][0].update(bbox=list(box))
    write(folder, "train", coco)
    (folder / "images" / "train1.png").unlink()
    save(Image.fromarray(pixels() if image is None else image), folder / "images" / name)


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def shown_box(orientation, box=BOX, height=H, width=W):
    """Return the box in the image as a viewer shows it."""
    x, y, w, h = box
    return {
        2: [width - x - w, y, w, h],
        3: [width - x - w, height - y - h, w, h],
        6: [height - y - h, x, h, w],
        8: [y, width - x - w, h, w],
    }[orientation]
