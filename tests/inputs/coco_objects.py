"""Objects in COCO's layout: boxes, areas, flags, masks."""

import numpy as np
from inputs import making
from inputs.making import (
    BOX,
    MASKS,
    H,
    W,
    all_splits,
    annotations,
    boxes_fit,
    good,
    read,
    source,
    without,
    write,
)

from crnas_jax.data import masks

case = making.cases("coco_objects")


def area_of_box(folder):
    opened = source(folder)
    *_, width, height = opened.coco["annotations"][0]["bbox"]
    assert opened[0]["area"].tolist() == [width * height]
    assert opened.coco["annotations"][0].get("area", width * height) == width * height


def masks_fit(folder):
    opened = source(folder)
    annotation = opened.coco["annotations"][0]
    mask = masks.validated(annotation["segmentation"], H, W)
    assert masks.crop(mask, [4, 5, 24, 15], 10).mean() > 0.9


@case(
    "no area",
    happens="the box's area",
    report="https://github.com/open-mmlab/mmdetection/issues/804",
    check=area_of_box,
)
def no_area(folder):
    all_splits(good(folder), without("annotations", "area"))


@case(
    "area 0, segmentation null, UUIDs as annotation ids (VoTT)",
    happens="the box's area, so that AP by size is right",
    report="https://github.com/facebookresearch/detr/issues/28",
    check=area_of_box,
)
def area_zero(folder):  # VoTT/Azure export: area 0, segmentation null, UUID annotation ids
    box = [2, 1, 50, 38]
    good(folder, box=box)
    all_splits(
        folder,
        lambda c: [
            a.update(id=f"c33c3539-{a['id']}", area=0, segmentation=None) for a in c["annotations"]
        ],
    )


@case(
    "no iscrowd",
    happens="taken as 0",
    report="https://github.com/cocodataset/cocoapi/issues/374",
    check=boxes_fit,
)
def no_iscrowd(folder):
    all_splits(good(folder), without("annotations", "iscrowd"))


@case(
    "a box of zeros beside a good one",
    happens="left out and counted",
    says="train: 1 boxes without size or outside their image are left out",
    report="https://github.com/jsbroks/coco-annotator/issues/109",
)
def empty_annotation(folder):  # COCO-annotator: "iscrowd": false, area 0, bbox of zeros
    def change(coco):
        for a in coco["annotations"]:
            a["iscrowd"] = False
        coco["annotations"].append(
            {
                "id": 4574,
                "image_id": 1,
                "category_id": 5,
                "segmentation": [],
                "area": 0,
                "bbox": [0, 0, 0, 0],
                "iscrowd": False,
            }
        )

    good(folder, change)


@case(
    "iscrowd=1 on every object",
    refused="train: all 2 objects have iscrowd: no object to find in it",
    report="https://github.com/ryouchinsa/Rectlabel-support/issues/241",
)
def all_crowd(folder):  # CVAT masks: RLE, hence iscrowd 1 everywhere
    all_splits(good(folder), annotations(iscrowd=1))


@case(
    '"ignore": 1 without iscrowd',
    happens="ground truth, as in COCO's tools; the plan says so",
    says="train: 1 objects have ignore=1 and iscrowd=0: they count",
    report="https://github.com/cocodataset/cocoapi/issues/123",
)
def ignore_flag(folder):  # VOC->COCO converters: "ignore": 1 for difficult objects
    all_splits(good(folder), lambda c: c["annotations"][1].update(ignore=1))


@case(
    "every object twice (CVAT)",
    happens="the plan counts them",
    says="train: 2 objects come twice: same image, class and box",
    report="https://github.com/cvat-ai/cvat/issues/5496",
)
def duplicate_annotations(folder):  # CVAT 5496: each object twice, once with and once without mask
    def change(coco):
        coco["annotations"] += [{**a, "id": a["id"] + 10} for a in coco["annotations"]]

    all_splits(good(folder), change)


@case(
    "bbox as an object of x, y, w, h",
    refused="annotations[0].bbox: {'cx': 14.0",
    report="https://github.com/NaturalIntelligence/imglab/issues/126",
)
def bbox_object(folder):  # imglab
    x, y, w, h = BOX
    good(
        folder,
        annotations(
            bbox={
                "cx": x + w / 2,
                "w": w,
                "cy": y + h / 2,
                "h": h,
                "y": y,
                "height": h,
                "x": x,
                "width": w,
            }
        ),
    )


@case(
    "bbox of texts",
    refused="annotations[0].bbox: ['4', '5', '20', '10']; give 4 finite",
    report="https://github.com/cvat-ai/cvat/issues/298",
)
def bbox_strings(folder):
    good(folder, annotations(bbox=[str(v) for v in BOX]))


@case(
    "no bbox",
    refused="annotations[0].bbox: missing",
    report="https://github.com/ultralytics/JSON2YOLO/issues/83",
)
def no_bbox(folder):
    good(folder, without("annotations", "bbox"))


@case(
    "bbox of NaN",
    refused="annotations[0].bbox: [nan, nan, nan, nan]",
    report="https://github.com/pylabel-project/pylabel/issues/35",
)
def bbox_nan(folder):  # pylabel: NaN is no JSON, but json.dumps of Python writes it
    good(folder, lambda c: c["annotations"][0].update(bbox=[float("nan")] * 4))


@case(
    "negatives as boxes of -1",
    happens="left out and counted",
    says="train: 1 boxes without size or outside their image",
    report="https://github.com/open-edge-platform/geti/issues/551",
)
def bbox_minus_one(folder):  # negatives marked by a box of -1 and a class of its own
    def change(coco):
        coco["categories"].append({"id": 9, "name": "background"})
        coco["annotations"][1].update(bbox=[-1, -1, -1, -1], category_id=9, area=0)

    all_splits(good(folder), change)


@case(
    "boxes as fractions of the image",
    happens="the plan warns",
    says="WARNING: 2 of 2 boxes are below 1.5 pixels",
    report="https://github.com/facebookresearch/detectron2/issues/3749",
)
def bbox_normalised(folder):  # 0..1 instead of pixels
    x, y, w, h = BOX
    all_splits(good(folder), annotations(bbox=[x / W, y / H, w / W, h / H], area=w * h / W / H))


@case(
    "boxes as [x0, y0, x1, y1]",
    happens="the plan warns",
    says="WARNING: boxes look like [x0, y0, x1, y1]",
    report="https://github.com/rbgirshick/py-faster-rcnn/issues/774",
)
def bbox_xyxy(folder):
    box = [30, 15, 20, 20]
    good(folder, box=box)
    all_splits(folder, annotations(bbox=[30, 15, 50, 35]))


@case(
    "segmentation [x, y, ...] without inner lists",
    refused="annotations[0].segmentation: [4, 5, 24, 5, 24, 15, 4, 15] is no mask",
    report="https://github.com/roboflow/supervision/issues/205",
    flags=MASKS,
)
def flat_polygon(folder):  # VIA, supervision: [x, y, ...] instead of [[x, y, ...]]; needs masks
    x, y, w, h = BOX
    all_splits(good(folder), annotations(segmentation=[x, y, x + w, y, x + w, y + h, x, y + h]))


@case(
    "a polygon of one point beside a good one",
    happens="the point is left out",
    report="https://github.com/jsbroks/coco-annotator/issues/526",
    check=masks_fit,
    flags=MASKS,
)
def point_in_segmentation(folder):  # COCO-annotator: a polygon of one point besides the good one
    x, y, w, h = BOX
    all_splits(
        good(folder),
        annotations(segmentation=[[30.0, 20.0], [x, y, x + w, y, x + w, y + h, x, y + h]]),
    )


@case(
    "empty segmentation, detector with masks",
    refused="annotations[0].segmentation: [] is no mask",
    report="https://github.com/jsbroks/coco-annotator/issues/109",
    flags=MASKS,
)
def empty_segmentation(folder):  # boxes of a mixed export have "segmentation": []
    all_splits(good(folder), annotations(segmentation=[]))


@case(
    "run lengths as a list, iscrowd 0",
    happens="read",
    report="https://github.com/cocodataset/cocoapi/issues/135",
    check=masks_fit,
    flags=MASKS,
)
def rle_counts_list(folder):  # uncompressed RLE with iscrowd 0
    mask = np.zeros((H, W), np.uint8)
    x, y, w, h = BOX
    mask[y : y + h, x : x + w] = 1
    flat, counts, last = mask.ravel(order="F"), [], 0
    run = 0
    for value in flat:
        if value != last:
            counts.append(run)
            run, last = 0, value
        run += 1
    counts.append(run)
    all_splits(good(folder), annotations(segmentation={"counts": counts, "size": [H, W]}))


@case(
    "polygon with negative coordinates, right box",
    refused="annotations[0].segmentation: [[-4, -5",
    report="https://github.com/cocodataset/cocoapi/issues/546",
    flags=MASKS,
)
def negative_polygon(folder):  # all coordinates negative, box right (cocoapi 546); needs masks
    x, y, w, h = BOX
    all_splits(
        good(folder), annotations(segmentation=[[-x, -y, -x - w, -y, -x - w, -y - h, -x, -y - h]])
    )


@case(
    "iscrowd=1 on nearly every object",
    happens="the plan warns",
    says="WARNING: 19 of 20 objects have iscrowd=1",
)
def nearly_all_crowd(folder):
    def change(coco):
        entry = {**coco["annotations"][0], "iscrowd": 1}
        coco["annotations"] = [
            *coco["annotations"][:1],
            *({**entry, "id": i} for i in range(2, 21)),
        ]
        for place, other in enumerate(coco["annotations"][1:], 1):
            other["bbox"] = [place, 20, 3, 3]

    good(folder, change)


@case(
    "an entry of the photograph for each object in test",
    refused="data.test: the same photograph under the image ids 1, 2, 3",
)
def entry_per_object(folder):
    good(folder)
    coco = read(folder, "test")
    coco["images"] = [{**coco["images"][0], "id": i} for i in (1, 2, 3)]
    coco["annotations"] = [
        {**coco["annotations"][0], "id": i, "image_id": i, "bbox": [4 * i, 5, 3, 3]}
        for i in (1, 2, 3)
    ]
    write(folder, "test", coco)


@case(
    "more objects than a batch or a detector has room for",
    happens="the plan counts them",
    says="test: 1 images have more than 100 objects, 20 too many",
)
def too_many_objects(folder):
    def change(coco):
        entry = coco["annotations"][0]
        coco["annotations"] = [
            {**entry, "id": i, "bbox": [i % 40, i // 40, 5, 5], "area": 25} for i in range(120)
        ]

    all_splits(good(folder), change)


@case(
    "areas as fractions of the image", happens="the plan warns", says="WARNING: areas are below one"
)
def fractional_areas(folder):
    all_splits(good(folder), annotations(area=0.05))


@case("an empty annotation file", refused="train.json: json: the file is empty")
def empty_file(folder):
    good(folder)
    (folder / "train.json").write_text("")


@case("most boxes out of their image", happens="the plan warns", says="WARNING: 2 boxes reach out")
def centres(folder):
    all_splits(good(folder), annotations(bbox=[45, 30, 20, 3]))
