"""From the data part of a config to sources."""

import pathlib
from collections.abc import Mapping

from crnas_jax.data.coco import CocoSource
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.errors import UserError

SPLITS = ("train", "val", "test")


def source(data, split: str):
    """The split of a data set.

    Args:
      data: the `data` part of a config (see `configs/base.py`).
      split: `train`, `val` (for the searches) or `test`.

    Raises:
      UserError: the config or the files are faulty.
    """
    if split not in SPLITS:
        raise UserError("data", "split", f"{split!r} is unknown", f"use one of {SPLITS}")
    if data.name == "synthetic":
        number = getattr(data.synthetic, split)
        return SyntheticSource(number, data.synthetic.size, seed=SPLITS.index(split))
    if data.name == "coco":
        folder = pathlib.Path(data.folder)
        return CocoSource(folder / data.images, folder / getattr(data, split))
    raise UserError("config", "data.name", f"{data.name!r} is unknown", "use 'coco' or 'synthetic'")


def require_consistent(sources: Mapping) -> None:
    """Raises UserError when the splits of a data set do not belong together.

    They have the same classes, none shares an image with another (a search must not see the test
    split), and each has images and objects.

    Args:
      sources: by name of their split.
    """
    owner, first = {}, next(iter(sources.values()))
    for split, one in sources.items():
        if (one.category_ids, one.class_names) != (first.category_ids, first.class_names):
            raise UserError(
                "data", split, "other categories than train", "give all splits the same"
            )
        if all(annotation.get("iscrowd") for annotation in one.coco["annotations"]):
            raise UserError("data", split, "no object in it", "label at least one image")
        for name in one.names:
            if owner.setdefault(name, split) != split:
                raise UserError(
                    "data", split, f"{name} is in {owner[name]} too", "give each image to one split"
                )
