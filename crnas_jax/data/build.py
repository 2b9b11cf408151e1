"""From the data part of a config to sources."""

import pathlib
from collections.abc import Mapping

from crnas_jax.data.classification import FolderSource, SyntheticClassification
from crnas_jax.data.coco import CocoSource
from crnas_jax.data.duplicates import shared_image
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.voc import VocSource
from crnas_jax.errors import UserError

SPLITS = ("train", "val", "test")


def source(data, split: str, with_masks: bool = False):
    """The split of a data set.

    Args:
      data: the `data` part of a config (see `configs/base.py`).
      split: `train`, `val` (for the searches) or `test`.
      with_masks: the objects' masks too; COCO's layout alone has them.

    Raises:
      UserError: the config or the files are faulty.
    """
    if split not in SPLITS:
        raise UserError("data", "split", f"{split!r} is unknown", f"use one of {SPLITS}")
    if data.name == "coco":
        folder = pathlib.Path(data.folder)
        images = data[f"{split}_images"] or data.images
        annotations = folder / getattr(data, split)
        return CocoSource(folder / images, annotations, data.strict, with_masks)
    if with_masks:
        raise UserError("config", "data.name", f"{data.name!r} has no masks", "use 'coco'")
    if data.name == "synthetic":
        number = getattr(data.synthetic, split)
        return SyntheticSource(number, data.synthetic.size, seed=SPLITS.index(split))
    if data.name == "voc":
        names = tuple(data.class_names) or None
        if "/" not in getattr(data, split):
            raise UserError(
                "config",
                f"data.{split}",
                f"{getattr(data, split)!r} is no list of a VOCdevkit",
                'give such as VOC2007/trainval; for data.val "" where nothing is searched',
            )
        return VocSource(data.folder, getattr(data, split), names, data.strict)
    raise UserError(
        "config", "data.name", f"{data.name!r} is unknown", "use 'coco', 'voc' or 'synthetic'"
    )


def classification_source(data, split: str):
    """The `train` or `val` split of a classification set.

    Args:
      data: the `pretrain.data` part of a config.
      split: which.

    Raises:
      UserError: the config or the files are faulty.
    """
    if data.name == "synthetic":
        number = getattr(data.synthetic, split)
        return SyntheticClassification(number, data.synthetic.size, seed=SPLITS.index(split))
    if data.name == "folder":
        return FolderSource(pathlib.Path(data.folder) / getattr(data, split))
    raise UserError(
        "config", "pretrain.data.name", f"{data.name!r} is unknown", "use 'folder' or 'synthetic'"
    )


def require_consistent(sources: Mapping) -> None:
    """Raises UserError when the splits of a data set do not belong together.

    They have the same classes, none shares an image with another (a search must not see the test
    split; copies under another name are found by their content), each has objects, and all image
    files are there.

    Args:
      sources: by name of their split.
    """
    owner, first = {}, next(iter(sources.values()), None)
    for split, one in sources.items():
        if (one.category_ids, one.class_names) != (first.category_ids, first.class_names):
            raise UserError(
                "data", split, "other categories than train", "give all splits the same"
            )
        annotations = one.coco["annotations"]
        if all(any(entry.get(field) for field in one.set_apart) for entry in annotations):
            raise UserError("data", split, "no object in it", "label at least one image")
        for name in one.names:
            if owner.setdefault(name, split) != split:
                raise UserError(
                    "data", split, f"{name} is in {owner[name]} too", "give each image to one split"
                )
    files = {split: one for split, one in sources.items() if isinstance(one, CocoSource)}
    for one in files.values():
        one.check_images()
    shared = shared_image({split: one.names for split, one in files.items()})
    if shared:
        split, name, other_split, other_name = shared
        raise UserError(
            name,
            f"data.{split}",
            f"the same image as {other_name} in {other_split}",
            "give each image to one split",
        )
