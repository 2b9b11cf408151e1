"""From options to the splits of a data set."""

import dataclasses
import pathlib
from collections.abc import Iterable

from crnas_jax.data.classification import FolderSource, SyntheticClassification
from crnas_jax.data.coco import CocoSource
from crnas_jax.data.images import MAX_PIXELS
from crnas_jax.data.orientation import AUTO, CHOICES
from crnas_jax.data.source import ClassificationSource, DetectionSource
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.voc import VocSource
from crnas_jax.errors import UserError
from crnas_jax.runtime.options import check_choice, check_counts

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
    """Size of a generated data set.

    Attributes:
      size: side of the images, pixels.
      train: number of images to train on.
      val: number of images for the searches.
      test: number of images for the end.
    """

    size: int = 64
    train: int = 1
    val: int = 1
    test: int = 1

    def __post_init__(self):
        check_counts(self, "size", "train", "val", "test")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Where a detection data set lies, and what of it a batch holds.

    Attributes:
      name: `coco`, `voc`, `tfds`, `synthetic`, or `none` for no detection data.
      folder: folder of the data set; of `tfds` that of one version.
      images: folder of the images inside it (`coco`).
      train_images: the same for one split, as the next two; "" for `images`.
      val_images: see `train_images`.
      test_images: see `train_images`.
      train: json file (`coco`), lists (`voc`) or split (`tfds`) to train on.
      val: the same for the searches; "" where nothing is searched.
      test: the same for the end.
      class_names: names of the classes (`voc`); () for VOC's 20.
      strict: refuse boxes without size or out of their image instead of leaving them out.
      exif: what boxes on photographs with an EXIF orientation were drawn on, one of
        `orientation.CHOICES`.
      max_pixels: pixels of the largest image that is decoded.
      synthetic: size of a generated data set.
      max_objects: boxes per image that a batch has room for.
      mask_size: cells per side of the masks that a batch holds.
      flip: mirror half of the training images.
      scale_jitter: see `transforms.DetectionRows`.
    """

    name: str
    folder: str = ""
    images: str = "images"
    train_images: str = ""
    val_images: str = ""
    test_images: str = ""
    train: str = ""
    val: str = ""
    test: str = ""
    class_names: tuple[str, ...] = ()
    strict: bool = False
    exif: str = AUTO
    max_pixels: int = MAX_PIXELS
    synthetic: SyntheticOptions = SyntheticOptions()
    max_objects: int = 100
    mask_size: int = 112
    flip: bool = True
    scale_jitter: tuple[float, ...] = ()

    def __post_init__(self):
        check_counts(self, "max_objects", "mask_size", "max_pixels")
        check_choice(self, "exif", CHOICES)


@dataclasses.dataclass(frozen=True)
class ClassificationDataOptions:
    """Where a classification data set lies.

    Attributes:
      name: `folder` (one subfolder per class), `tfds` or `synthetic`.
      folder: folder of the data set; of `tfds` that of one version.
      train: folder in it (`folder`) or split (`tfds`) to train on.
      val: the same for accuracy.
      size: side of the crops, pixels.
      synthetic: size of a generated data set.
    """

    name: str
    folder: str = ""
    train: str = "train"
    val: str = "val"
    size: int = 224
    synthetic: SyntheticOptions = SyntheticOptions()

    def __post_init__(self):
        check_counts(self, "size")


def detection_source(
    options: DataOptions,
    split: str,
    with_masks: bool = False,
    keep_in: pathlib.Path | None = None,
) -> DetectionSource:
    """Open a split of a detection data set.

    Args:
      options: where the data lies.
      split: one of `SPLITS`.
      with_masks: whether records have the objects' masks; COCO's layout and `tfds` have them.
      keep_in: folder in which an earlier run may have kept the index of records (`tfds`).

    Raises:
      UserError: the options or the files are faulty.
    """
    place = getattr(options, split)
    if options.name == "coco":
        folder = pathlib.Path(options.folder)
        if not options.folder:
            raise UserError(
                "config",
                "data.folder",
                "empty",
                "give the folder with images/ and the json files: --config.data.folder=PATH",
            )
        images = getattr(options, f"{split}_images") or options.images
        return CocoSource(
            folder / images,
            folder / place,
            options.strict,
            with_masks,
            options.exif,
            options.max_pixels,
        )
    if options.name == "tfds":
        return _tfds_source(options, split, with_masks, keep_in)
    if with_masks:
        raise UserError("config", "data.name", f"{options.name!r} has no masks", "use 'coco'")
    if options.name == "synthetic":
        num_images = getattr(options.synthetic, split)
        return SyntheticSource(num_images, options.synthetic.size, seed=SPLITS.index(split))
    if options.name == "voc":
        if "/" not in place:
            raise UserError(
                "config",
                f"data.{split}",
                f"{place!r} is no list of a VOCdevkit",
                'give such as VOC2007/trainval; for data.val "" where nothing is searched',
            )
        return VocSource(
            options.folder,
            place,
            options.class_names or None,
            options.strict,
            options.exif,
            options.max_pixels,
        )
    raise UserError(
        "config",
        "data.name",
        f"{options.name!r} is unknown",
        "use 'coco', 'voc', 'tfds' or 'synthetic'",
    )


def _tfds_source(options, split, with_masks, keep_in):
    from crnas_jax.data.tfds import TfdsSource  # TFDS takes a second to import

    if not options.folder:
        remedy = "give the folder of one version: --config.data.folder=PATH"
        raise UserError("config", "data.folder", "empty", remedy)
    return TfdsSource(
        options.folder,
        getattr(options, split),
        options.strict,
        with_masks,
        options.exif,
        options.max_pixels,
        f"data.{split}",
        keep_in,
    )


def detection_sources(
    options: DataOptions, with_masks: bool = False, keep_in: pathlib.Path | None = None
) -> dict[str, DetectionSource]:
    """Open the splits of a detection data set by name; arguments as of `detection_source`.

    `val` is left out where the options name none; the result is empty for the data set `none`.
    `checks.require_consistent` looks whether the splits belong together.

    Raises:
      UserError: the files are faulty.
    """
    if options.name == "none":
        return {}
    return {
        split: detection_source(options, split, with_masks, keep_in)
        for split in SPLITS
        if split != "val" or options.val
    }


def classification_sources(
    options: ClassificationDataOptions, keep_in: pathlib.Path | None = None
) -> dict[str, ClassificationSource]:
    """Open the `train` and `val` split of a classification data set.

    Args:
      options: where the data lies.
      keep_in: see `detection_source`.

    Raises:
      UserError: the options or the files are faulty, or the splits have different classes.
    """
    splits = ("train", "val")
    sources = {split: _classification_source(options, split, keep_in) for split in splits}
    if sources["train"].class_names != sources["val"].class_names:
        raise UserError(
            options.folder, options.val, "other classes than train", "give both the same folders"
        )
    return sources


def _classification_source(options, split, keep_in):
    if options.name == "synthetic":
        num_images, seed = getattr(options.synthetic, split), SPLITS.index(split)
        return SyntheticClassification(num_images, options.synthetic.size, seed=seed)
    if options.name == "folder":
        return FolderSource(pathlib.Path(options.folder) / getattr(options, split))
    if options.name == "tfds":
        from crnas_jax.data.tfds import TfdsClassification  # TFDS takes a second to import

        spec, field = getattr(options, split), f"pretrain.data.{split}"
        return TfdsClassification(options.folder, spec, field, keep_in)
    raise UserError(
        "config",
        "pretrain.data.name",
        f"{options.name!r} is unknown",
        "use 'folder', 'tfds' or 'synthetic'",
    )


def keep_indices(sources: Iterable[DetectionSource | ClassificationSource]) -> None:
    """Write the indices of records of others, so that the next run need not read them all.

    Raises:
      UserError: one cannot be written.
    """
    for source in sources:
        if hasattr(source, "keep_index"):
            source.keep_index()
