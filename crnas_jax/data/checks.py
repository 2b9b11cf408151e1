"""Check the splits of a data set together, and say what of their annotations looks wrong."""

import collections
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crnas_jax.data.duplicates import copies
from crnas_jax.data.source import DetectionSource
from crnas_jax.errors import UserError

# Boxes that are smaller than this in all numbers are fractions of the image rather than pixels.
_NORMALISED = 1.5
# Share of all boxes above which something is no exception any more.
_NEARLY_ALL, _SOME = 0.9, 0.02


def require_consistent(sources: Mapping[str, DetectionSource]) -> list[str]:
    """Raise UserError when the splits of a data set do not belong together.

    They must have the same classes, share no image (a search must not see the test split; copies
    under another name are found by their content), have an object each, and all image files. No
    image may come twice in `val` or `test`: what a detector finds in it would be false detections
    in each of its entries but one.

    Returns:
      Lines for the plan of a run.
    """
    split_of, first = {}, next(iter(sources.values()), None)
    for split, source in sources.items():
        classes, others = (
            dict(zip(s.category_ids, s.class_names, strict=True)) for s in (source, first)
        )
        if classes != others:
            category = min(dict(classes.items() ^ others.items()))
            here, there = (
                repr(names[category]) if category in names else "missing"
                for names in (classes, others)
            )
            problem = f"other categories than train: {category} is {here} here and {there} there"
            raise UserError("data", split, problem, "give all splits the same")
        annotations = source.coco["annotations"]
        if all(_is_ignored(source, entry) for entry in annotations):
            fields = " or ".join(source.ignore_fields)
            problem = "no object in it" + "".join(f": {note}" for note in source.notes())
            if annotations:
                problem = f"all {len(annotations)} objects have {fields}: no object to find in it"
            raise UserError("data", split, problem, "label at least one image")
        for name in source.image_names:
            if split_of.setdefault(name, split) != split:
                problem = f"{name} is in {split_of[name]} too"
                raise UserError("data", split, problem, "give each image to one split")
    for source in sources.values():
        source.check_images()
    groups = copies({split: source.stored_images for split, source in sources.items()})
    for group in groups:
        split, path = group[0]
        other = next((entry for entry in group if entry[0] != split), None)
        if other:
            raise UserError(
                path,
                f"data.{split}",
                f"the same image as {other[1]} in {other[0]}",
                "give each image to one split",
            )
    notes = []
    for split, source in sources.items():
        repeated = _repeated_images(source, [group for group in groups if group[0][0] == split])
        if repeated and split != "train":
            path, image_ids = next(iter(repeated.items()))
            raise UserError(
                path,
                f"data.{split}",
                f"the same photograph under the image ids {', '.join(map(str, image_ids[:5]))}",
                "give it one entry with all its objects",
            )
        if repeated:
            num_entries = sum(map(len, repeated.values()))
            notes.append(
                f"{split}: {len(repeated)} photographs come as {num_entries} images (same file or "
                "content); in each, the objects of the others are taken for background"
            )
        notes += [f"{split}: {note}" for note in (*source.notes(), *_annotation_notes(source))]
    return notes


def cap_notes(source: DetectionSource, max_objects: int, what: str) -> list[str]:
    """Say how many images have more objects than a cap, and how many objects are beyond it.

    Args:
      source: the split.
      max_objects: objects of an image that there is room for.
      what: what the room is for, and the field that sets it.
    """
    counts = collections.Counter(entry["image_id"] for entry in source.coco["annotations"])
    beyond = [count - max_objects for count in counts.values() if count > max_objects]
    if not beyond:
        return []
    return [
        f"{len(beyond)} images have more than {max_objects} objects, {sum(beyond)} too many: {what}"
    ]


def _is_ignored(source, annotation):
    return any(annotation.get(field) for field in source.ignore_fields)


def _repeated_images(
    source: DetectionSource, groups: Sequence[Sequence[tuple[str, str]]]
) -> dict[str, list[int]]:
    """Return the images that come several times in one split: their ids by the first path.

    Args:
      source: the split.
      groups: files with the same content (`duplicates.copies`).
    """
    first = {path: group[0][1] for group in groups for _, path in group}
    image_ids = collections.defaultdict(list)
    for image, image_id in zip(source.stored_images, source.image_ids.tolist(), strict=False):
        image_ids[first.get(image.name, image.name)].append(image_id)
    return {path: ids for path, ids in image_ids.items() if len(ids) > 1}


def _annotation_notes(source: DetectionSource) -> Iterator[str]:
    """Say what looks like a mistake of a whole annotation file."""
    annotations = source.coco["annotations"]
    # A row for each object at once: as Python's lists they would take a gigabyte for COCO.
    kind = np.dtype(
        [("ids", np.int64, 2), ("bbox", np.float64, 4), ("area", np.float64), ("flags", bool, 2)]
    )
    table = np.fromiter(
        (
            (
                (entry["image_id"], entry["category_id"]),
                tuple(entry["bbox"]),
                entry.get("area", np.nan),
                (
                    bool(entry.get("iscrowd")),
                    bool(entry.get("ignore")) and not _is_ignored(source, entry),
                ),
            )
            for entry in annotations
        ),
        kind,
        len(annotations),
    )
    boxes, areas = table["bbox"], table["area"]
    num_crowds, num_ignored = table["flags"].sum(0).tolist()
    sizes = source.sizes[np.searchsorted(source.image_ids, table["ids"][:, 0])]
    num_normalised = (boxes < _NORMALISED).all(1).sum()
    if num_normalised > _NEARLY_ALL * len(boxes):
        yield (
            f"WARNING: {num_normalised} of {len(boxes)} boxes are below 1.5 pixels; they look like "
            "fractions of the image"
        )
    elif _looks_like_corners(boxes, sizes):
        yield (
            "WARNING: boxes look like [x0, y0, x1, y1], and are read as [x, y, width, height]: "
            "many reach out of their image"
        )
    if (areas < 1).sum() > _NEARLY_ALL * len(areas) and num_normalised < _SOME * len(boxes):
        yield "WARNING: areas are below one pixel, unlike their boxes: AP by size would go by them"
    if num_crowds > _NEARLY_ALL * len(annotations):
        yield (
            f"WARNING: {num_crowds} of {len(annotations)} objects have iscrowd=1; they are no "
            "ground truth in training and are ignored in evaluation"
        )
    if num_ignored:
        yield f"{num_ignored} objects have ignore=1 and iscrowd=0: they count, as in COCO's tools"
    columns = [*table["ids"].T, *boxes.T]
    order = np.lexsort(columns)
    is_repeated = np.ones(max(len(table) - 1, 0), bool)
    for column in columns:
        is_repeated &= np.diff(column[order]) == 0
    num_repeated = int(is_repeated.sum())
    if num_repeated:
        yield f"{num_repeated} objects come twice: same image, class and box"
    present = set(table["ids"][:, 1].tolist())
    absent = [
        name
        for category, name in zip(source.category_ids, source.class_names, strict=True)
        if category not in present
    ]
    if absent:
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        yield f"{len(absent)} of {len(source.class_names)} classes have no object: {names}"


def _looks_like_corners(boxes, sizes):
    """Tell whether all boxes fit their images as corners, but some do not as corner and size."""
    height, width = sizes[:, 0], sizes[:, 1]
    x0, y0, x1, y1 = boxes.T
    fits = (x1 > x0) & (y1 > y0) & (x1 <= width + 1) & (y1 <= height + 1)
    reaches_out = (x0 + x1 > width + 1) | (y0 + y1 > height + 1)
    return fits.mean() > _NEARLY_ALL and (fits & reaches_out).mean() > _SOME
