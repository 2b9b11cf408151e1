"""Files in COCO's layout: ids, names, images listed in them."""

import json
import pathlib

from inputs import making
from inputs.making import (
    RED,
    H,
    W,
    all_splits,
    annotations,
    boxes_fit,
    good,
    pixels,
    read,
    source,
    without,
    write,
)
from PIL import Image

case = making.cases("coco_files")


def exact_ids(folder):
    assert source(folder).image_ids.tolist() == [7706992903151817197, 7706992903151817198]
    boxes_fit(folder)


def labels_by_id(folder):
    assert source(folder).class_names == source(folder, "val").class_names == ["cell", "dot"]
    assert source(folder, "val")[0]["labels"].tolist() == [1]


@case(
    "image_id as text in annotations",
    refused="train.json: annotations[0].image_id: '1' as text is not valid; give a whole number",
    report="https://github.com/dbolya/yolact/issues/156",
)
def string_image_ids(folder):
    good(folder, lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]])


@case(
    "ids that are file names",
    refused="train.json: images[0].id: 'train1' as text is not valid; give a whole number",
    report="https://github.com/MiXaiLL76/faster_coco_eval/issues/58",
)
def name_image_ids(folder):
    def change(coco):
        for image in coco["images"]:
            image["id"] = image["file_name"][:-4]
        for a in coco["annotations"]:
            a["image_id"] = f"train{a['image_id']}"

    good(folder, change)


@case(
    "ids as floats, as pandas writes them",
    refused="train.json: annotations[0].image_id: 1.0 is not valid",
    report="https://github.com/cocodataset/cocoapi/issues/330",
)
def float_ids(folder):
    def change(coco):
        for a in coco["annotations"]:
            a["image_id"], a["category_id"] = float(a["image_id"]), 5.0

    good(folder, change)


@case(
    "ids of 63 bits",
    happens="taken exactly",
    report="https://github.com/voxel51/fiftyone/issues/1472",
    check=exact_ids,
)
def hash_ids_63(folder):  # fits int64, does not fit float64
    def change(coco):
        for image in coco["images"]:
            image["id"] += 7706992903151817196
        for a in coco["annotations"]:
            a["image_id"] += 7706992903151817196

    all_splits(good(folder), change)


@case(
    "ids of 64 bits without sign",
    refused="give a whole number below 2**63",
    report="https://github.com/cocodataset/cocoapi/issues/330",
)
def hash_ids_64(folder):  # unsigned 64-bit hash
    def change(coco):
        for image in coco["images"]:
            image["id"] += 2**63 + 10
        for a in coco["annotations"]:
            a["image_id"] += 2**63 + 10

    good(folder, change)


@case(
    "category ids from 0",
    happens="label 1, box on object",
    report="https://github.com/HumanSignal/label-studio/issues/6609",
    check=boxes_fit,
)
def category_zero(folder):
    def change(coco):
        coco["categories"] = [{"id": 0, "name": "cell"}]
        for a in coco["annotations"]:
            a["category_id"] = 0

    all_splits(good(folder), change)


@case(
    "a parent category without objects (Roboflow)",
    happens="a class as any other; the plan names it",
    says="train: 1 of 2 classes have no object: cells",
    report="https://github.com/roboflow/rf-detr/pull/1303",
)
def roboflow_parent_category(folder):
    def change(coco):
        coco["categories"] = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 5, "name": "cell", "supercategory": "cells"},
        ]

    all_splits(good(folder), change)


@case(
    "two categories of one name",
    refused="train.json: categories[1].name: 'cell' comes twice; rename it",
    report="https://github.com/DLR-RM/BlenderProc/issues/883",
)
def duplicate_category_names(folder):
    def change(coco):
        coco["categories"] = [{"id": 5, "name": "cell"}, {"id": 6, "name": "cell"}]

    all_splits(good(folder), change)


@case(
    "a category that is not listed",
    refused="annotations[1]: category_id 2 is not a category",
    report="https://github.com/facebookresearch/detectron2/issues/5335",
)
def unlisted_category(folder):
    good(folder, lambda c: c["annotations"][1].update(category_id=2))


@case(
    "category_id null",
    refused="annotations[0].category_id: missing",
    report="https://github.com/neuroinformatics-unit/ethology/issues/38",
)
def null_category(folder):
    good(folder, annotations(category_id=None))


@case(
    "categories listed in another order in val",
    happens="labels go by id: equal in all splits",
    report="https://github.com/facebookresearch/maskrcnn-benchmark/issues/970",
    check=labels_by_id,
)
def category_order_differs(folder):  # same ids and names, other order of the list
    two = [{"id": 5, "name": "cell"}, {"id": 7, "name": "dot"}]
    all_splits(good(folder), lambda c: c.update(categories=two))
    coco = read(folder, "val")
    coco["categories"] = two[::-1]
    write(folder, "val", coco)


@case(
    "ids of two classes exchanged in val",
    refused="val: other categories than train: 5 is 'dot' here and 'cell' there",
    report="https://github.com/yatengLG/ISAT_with_segment_anything/issues/36",
)
def category_ids_differ(folder):  # CLASS_B is 1 in train, 2 in val
    all_splits(
        good(folder),
        lambda c: c.update(categories=[{"id": 5, "name": "cell"}, {"id": 7, "name": "dot"}]),
    )
    coco = read(folder, "val")
    coco["categories"] = [{"id": 7, "name": "cell"}, {"id": 5, "name": "dot"}]
    write(folder, "val", coco)


@case(
    "images without height and width",
    refused="train.json: images[0].height: missing",
    report="https://github.com/open-mmlab/mmdetection/issues/4139",
)
def no_size(folder):
    good(folder, lambda c: [(i.pop("height"), i.pop("width")) for i in c["images"]])


@case(
    "height and width exchanged",
    refused="train1.png: size: 40 x 60 pixels, ",
    report="https://github.com/DLR-RM/BlenderProc/issues/106",
)
def swapped_size(folder):
    good(folder, lambda c: [i.update(height=W, width=H) for i in c["images"]])


@case(
    "file_name images\\x.png (Windows)",
    happens="found",
    report="https://github.com/HumanSignal/label-studio/issues/7294",
    check=boxes_fit,
)
def backslash_images(folder):  # Label Studio on Windows: images\name.png beside result.json
    good(folder, lambda c: [i.update(file_name="images\\" + i["file_name"]) for i in c["images"]])


@case(
    "file_name a\\x.png of a file in a folder",
    happens="found",
    report="https://github.com/CVHub520/X-AnyLabeling/issues/700",
    check=boxes_fit,
)
def backslash_subfolder(folder):  # the file is there: images/a/train1.png
    def change(coco):
        (folder / "images" / "a").mkdir()
        for image in coco["images"]:
            name = image["file_name"]
            (folder / "images" / name).rename(folder / "images" / "a" / name)
            image["file_name"] = "a\\" + name

    folder = pathlib.Path(folder)
    good(folder, change)


@case(
    "file_name that leads out with ..",
    refused="leads out of",
    report="https://github.com/HumanSignal/label-studio/issues/7294",
)
def parent_path(folder):
    good(
        folder,
        lambda c: [
            i.update(file_name="..\\..\\label-studio\\media\\upload\\4\\" + i["file_name"])
            for i in c["images"]
        ],
    )


@case(
    "absolute path of another computer",
    refused="leads out of",
    report="https://github.com/HumanSignal/label-studio/issues/4473",
)
def absolute_path(folder):
    good(
        folder,
        lambda c: [
            i.update(file_name="/home/roshan/images/" + i["file_name"]) for i in c["images"]
        ],
    )


@case(
    "path with a drive letter",
    refused="'D:\\\\data\\\\images\\\\train1.png' leads out of",
    report="https://github.com/HumanSignal/label-studio/issues/2709",
)
def windows_drive(folder):
    good(
        folder,
        lambda c: [i.update(file_name="D:\\data\\images\\" + i["file_name"]) for i in c["images"]],
    )


@case(
    "URL path of Label Studio",
    refused="leads out of",
    report="https://github.com/HumanSignal/label-studio/issues/4903",
)
def local_files_url(folder):
    good(
        folder,
        lambda c: [
            i.update(file_name="/data/local-files/?d=images/" + i["file_name"]) for i in c["images"]
        ],
    )


@case(
    "names encoded for URLs, files not",
    happens="found",
    report="https://github.com/HumanSignal/label-studio/issues/2709",
    check=boxes_fit,
)
def url_encoded(folder):  # file "train 1.png", entry "train%201.png"
    folder = pathlib.Path(folder)

    def change(coco):
        for image in coco["images"]:
            name = image["file_name"].replace("train", "train ")
            (folder / "images" / image["file_name"]).rename(folder / "images" / name)
            image["file_name"] = name.replace(" ", "%20")

    good(folder, change)


@case(
    "file_name images/x.png (Label Studio)",
    happens="found",
    report="https://github.com/HumanSignal/label-studio-converter/issues/188",
    check=boxes_fit,
)
def images_prefix(folder):  # "images/name.png" beside result.json (Label Studio, Linux)
    good(folder, lambda c: [i.update(file_name="images/" + i["file_name"]) for i in c["images"]])


@case(
    "annotation ids all 0",
    happens="accepted, ids are not used",
    report="https://github.com/cvat-ai/cvat/issues/2155",
    check=boxes_fit,
)
def duplicate_annotation_ids(folder):
    all_splits(good(folder), annotations(id=0))


@case(
    "annotations without ids",
    happens="accepted, ids are not used",
    report="https://github.com/facebookresearch/detectron2/issues/1645",
    check=boxes_fit,
)
def no_annotation_ids(folder):
    all_splits(good(folder), without("annotations", "id"))


@case(
    "two images with one id",
    refused="images[1]: id 1 comes twice",
    report="https://github.com/cvat-ai/cvat/issues/7523",
)
def duplicate_image_ids(folder):
    good(folder, lambda c: c["images"][1].update(id=1))


@case(
    "one file under two ids in train",
    happens="the plan counts it",
    says="train: 1 photographs come as 2 images",
    report="https://github.com/sartorius-research/LIVECell/issues/14",
)
def image_listed_twice(folder):  # one file under two image ids, an object each (merged exports)
    folder = good(folder)
    coco = read(folder)
    image = pixels()
    image[25:35, 30:50] = RED
    Image.fromarray(image).save(folder / "images" / "train1.png")
    coco["images"][1]["file_name"] = "train1.png"
    coco["annotations"][1]["bbox"] = [30, 25, 20, 10]
    write(folder, "train", coco)


@case(
    "VIA's own json",
    refused="train.json: images: missing, or no list; give a COCO annotation file",
    report="https://github.com/akTwelve/tutorials/issues/4",
)
def via_json(folder):  # VIA's own json instead of its COCO export
    folder = good(folder)
    (folder / "train.json").write_text(
        json.dumps(
            {
                "train1.png123": {
                    "filename": "train1.png",
                    "size": 123,
                    "regions": [],
                    "file_attributes": {},
                }
            }
        )
    )


@case(
    "byte order mark",
    happens="read",
    report="https://github.com/cityjson/cjio/issues/21",
    check=boxes_fit,
)
def json_bom(folder):
    folder = good(folder)
    text = (folder / "train.json").read_text()
    (folder / "train.json").write_text(text, encoding="utf-8-sig")


@case(
    "one file under two ids in val",
    refused="val1.png: data.val: the same photograph under the image ids 1, 2",
)
def image_listed_twice_in_val(folder):
    good(folder)
    coco = read(folder, "val")
    coco["images"][1]["file_name"] = "./val1.png"
    write(folder, "val", coco)


@case(
    "a copy of a photograph in test",
    refused="data.test: the same photograph under the image ids 1, 2",
)
def copy_in_test(folder):
    good(folder)
    images = folder / "images"
    (images / "test2.png").write_bytes((images / "test1.png").read_bytes())
