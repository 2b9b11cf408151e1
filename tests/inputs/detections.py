"""Detections in files, scored by the command `ap`."""

import json

from inputs import making
from inputs.making import BOX, all_splits, annotations, good, read, write

case = making.cases("detections", command="ap")


def _files(folder, results, **changes):
    """Write detections beside the annotations of test; return the command's flags."""
    file = folder / "detections.json"
    file.write_text(results if isinstance(results, str) else json.dumps(results))
    return [f"--annotations={folder / 'test.json'}", f"--detections={file}"]


def _perfect(folder):
    return [
        {**{name: entry[name] for name in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for entry in read(folder, "test")["annotations"]
    ]


@case("detections that are the objects", happens="AP 100", says="boxes: AP 100.0,")
def perfect(folder):
    good(folder)
    return _files(folder, _perfect(folder))


@case(
    "annotation ids from 0, which pycocotools takes for no match",
    happens="AP 100",
    says="boxes: AP 100.0,",
    report="https://github.com/pytorch/vision/issues/1530",
)
def annotation_id_zero(folder):
    good(folder)
    all_splits(folder, lambda c: [e.update(id=i) for i, e in enumerate(c["annotations"])])
    return _files(folder, _perfect(folder))


@case(
    "category ids with gaps, listed in any order",
    happens="AP by class under the right names",
    says="z                    100.0",
    report="https://github.com/open-mmlab/mmdetection/issues/2916",
)
def gaps_and_order(folder):
    def change(coco):
        coco["categories"] = [{"id": i, "name": n} for i, n in ((90, "z"), (1, "a"), (13, "m"))]
        coco["annotations"][0]["category_id"] = 90
        coco["annotations"][1]["category_id"] = 13

    all_splits(good(folder), change)
    return _files(folder, [row for row in _perfect(folder) if row["category_id"] == 90])


@case(
    "no detections",
    happens="AP 0",
    says="boxes: AP 0.0,",
    report="https://github.com/cocodataset/cocoapi/issues/675",
)
def nothing(folder):
    good(folder)
    return _files(folder, [])


@case(
    "a detection on an image of another split",
    refused="detections.json: [2].image_id: 99 is none of the annotations'",
    report="https://github.com/facebookresearch/detectron2/issues/1570",
)
def unknown_image(folder):
    good(folder)
    other = {"image_id": 99, "category_id": 5, "bbox": BOX, "score": 0.5}
    return _files(folder, [*_perfect(folder), other])


@case(
    "image ids as text",
    refused="detections.json: [0].image_id: '1' is none of the annotations' (whole numbers)",
    report="https://github.com/cvat-ai/cvat/issues/298",
)
def text_ids(folder):
    good(folder)
    return _files(folder, [{**r, "image_id": str(r["image_id"])} for r in _perfect(folder)])


@case(
    "classes counted from 0 in place of category ids",
    refused="detections.json: [0].category_id: 0 is none of the annotations'",
    report="https://github.com/LSH9832/edgeyolo/issues/12",
)
def class_indices(folder):
    good(folder)
    return _files(folder, [{**row, "category_id": 0} for row in _perfect(folder)])


@case(
    "a score of NaN",
    refused="detections.json: [1].score: [nan]; give 1 finite number(s)",
    report="https://github.com/zju3dv/snake/issues/214",
)
def nan_score(folder):
    good(folder)
    results = _perfect(folder)
    results[1]["score"] = float("nan")
    return _files(folder, results)


@case("a box of three numbers", refused="detections.json: [0].bbox: [4, 5, 20]; give 4 finite")
def short_box(folder):
    good(folder)
    return _files(folder, [{**row, "bbox": row["bbox"][:3]} for row in _perfect(folder)])


@case("half a file", refused="detections.json: json: ")
def half_a_file(folder):
    good(folder)
    return _files(folder, json.dumps(_perfect(folder))[:40])


@case(
    "a false detection on an image without objects",
    happens="it counts: AP 50",
    says="boxes: AP 50.",
    report="https://github.com/dbolya/yolact/issues/22",
)
def negative_image(folder):
    all_splits(good(folder), lambda c: c.update(annotations=c["annotations"][:1]))
    other = {"image_id": 2, "category_id": 5, "bbox": BOX, "score": 0.99}
    return _files(folder, [*_perfect(folder), other])


@case(
    "false detections of a class without objects",
    happens="they do not count, as in COCO's tools; its AP is none",
    says="sweater              none",
    report="https://github.com/rizavelioglu/fashionfail/issues/2",
)
def class_without_objects(folder):
    all_splits(good(folder), lambda c: c["categories"].append({"id": 7, "name": "sweater"}))
    other = {"image_id": 1, "category_id": 7, "bbox": BOX, "score": 0.99}
    return _files(folder, [*_perfect(folder), *[other] * 100])


@case(
    "area 0 in the annotations",
    happens="AP by size goes by the box",
    says="APs none, APm 100.0",
    report="https://github.com/cocodataset/cocoapi/issues/36",
)
def area_zero(folder):
    all_splits(good(folder, box=[2, 1, 50, 38]), annotations(area=0))
    return _files(folder, _perfect(folder))


@case(
    "ids of 63 bits, which floats cannot hold",
    happens="AP 100",
    says="boxes: AP 100.0,",
    report="https://github.com/cocodataset/cocoapi/issues/330",
)
def long_ids(folder):
    good(folder)
    coco = read(folder, "test")
    for entries, field in ((coco["images"], "id"), (coco["annotations"], "image_id")):
        for entry in entries:
            entry[field] += 7706992903151817196
    write(folder, "test", coco)
    return _files(folder, _perfect(folder))


@case(
    "the object that `predict` writes",
    happens="images are found by file name",
    says="boxes: AP 100.0,",
)
def of_predict(folder):
    good(folder)
    rows = [{**row, "image_id": 3 - row["image_id"]} for row in _perfect(folder)]
    images = [{"id": 2, "file_name": "photos/test1.png"}, {"id": 1, "file_name": "test2.png"}]
    return _files(folder, {"images": images, "annotations": rows})


@case("detections without masks", refused="[0].segmentation: no mask of its image")
def without_masks(folder):
    x, y, w, h = BOX
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    all_splits(good(folder), annotations(segmentation=polygon))
    return [*_files(folder, _perfect(folder)), "--masks"]


def _same_names(folder, *names):
    """Write two images of one name in two folders; return the paths that predict writes."""
    good(folder)
    coco = read(folder, "test")
    for image, name in zip(coco["images"], ("a/1.png", "b/1.png"), strict=True):
        image["file_name"] = name
    write(folder, "test", coco)
    rows = [{**row, "image_id": row["image_id"] + 7} for row in _perfect(folder)]
    images = [{"id": 8 + i, "file_name": name} for i, name in enumerate(names)]
    return _files(folder, {"images": images, "annotations": rows})


@case("the same, with one name in two folders", happens="told apart", says="boxes: AP 100.0,")
def same_names(folder):
    return _same_names(folder, "photos/a/1.png", "photos/b/1.png")


@case(
    "the same, without the folders", refused="images: photos/1.png may be each of the images [1, 2]"
)
def ambiguous_names(folder):
    return _same_names(folder, "photos/1.png", "photos/2.png")


@case(
    "the same, with an id that its images lack", refused="[1].image_id: 9 is no image of the file"
)
def missing_image(folder):
    return _same_names(folder, "photos/a/1.png")


@case(
    "detections on the images of all splits", happens="those of others are left out", is_noted=True
)
def all_images(folder):
    good(folder)
    images = [{"id": i, "file_name": f"photos/{n}.png"} for i, n in ((1, "test1"), (2, "val1"))]
    rows = [{"image_id": i, "category_id": 5, "bbox": BOX, "score": 0.9} for i in (1, 2)]
    return _files(folder, {"images": images, "annotations": rows})


@case("detections of another split", refused="images: none of its images, such as photos/val1.png,")
def other_split(folder):
    good(folder)
    images = [{"id": 1, "file_name": "photos/val1.png"}]
    return _files(folder, {"images": images, "annotations": []})
