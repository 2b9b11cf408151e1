"""Photographs with an EXIF orientation."""

from inputs import making
from inputs.making import (
    SHOWN,
    STORED,
    H,
    W,
    boxes_fit,
    exif_of,
    pixels,
    read,
    replace_image,
    shown_box,
    write,
)
from PIL import Image

case = making.cases("orientations")


def stored_fit(folder):
    boxes_fit(folder, exif="stored")


def shown_fit(folder):
    boxes_fit(folder, exif="shown")


def both_fit(folder):
    boxes_fit(folder)
    boxes_fit(folder, index=1)


@case(
    "EXIF rotation, size as shown",
    happens="turned: box on object",
    says="1 photographs have an EXIF orientation: boxes belong to them as shown",
    report="https://github.com/ryouchinsa/Rectlabel-support/issues/167",
    check=boxes_fit,
)
def exif6_labelled_rotated(folder):
    replace_image(
        folder,
        lambda i, p: i.save(p, quality=95, exif=exif_of(6)),
        "train1.jpg",
        (W, H),
        shown_box(6),
    )


@case(
    "EXIF rotation, size as stored",
    happens="not turned: box on object",
    says="boxes belong to them as stored",
    report="https://github.com/AlexeyAB/Yolo_mark/issues/107",
    check=boxes_fit,
)
def exif6_labelled_stored(folder):
    replace_image(folder, lambda i, p: i.save(p, quality=95, exif=exif_of(6)), "train1.jpg")


@case(
    "upside down by EXIF, so that no size tells",
    refused=(
        "config.data.exif: nothing tells whether boxes belong to the 1 photographs "
        "with an EXIF orientation (train1.jpg)"
    ),
    report="https://github.com/python-pillow/Pillow/issues/9109",
)
@case(
    "the same with data.exif=shown",
    happens="turned: box on object",
    check=shown_fit,
    flags=SHOWN,
    name="exif3_shown",
)
def exif3_labelled_shown(folder):  # upside down, labelled in a tool that applies EXIF
    replace_image(
        folder,
        lambda i, p: i.save(p, quality=95, exif=exif_of(3)),
        "train1.jpg",
        (H, W),
        shown_box(3),
    )


@case(
    "mirrored by EXIF",
    refused="nothing tells whether boxes belong",
    report="https://github.com/facebookresearch/detectron2/pull/262",
)
@case(
    "mirrored by EXIF, data.exif=shown",
    happens="mirrored: box on object",
    check=shown_fit,
    flags=SHOWN,
    name="exif2_shown",
)
def exif2_labelled_shown(folder):  # mirrored front camera
    replace_image(
        folder,
        lambda i, p: i.save(p, quality=95, exif=exif_of(2)),
        "train1.jpg",
        (H, W),
        shown_box(2),
    )


@case(
    "a square photograph turned by EXIF",
    refused="nothing tells whether boxes belong",
    report="https://github.com/wkentaro/labelme/issues/232",
)
@case(
    "the same with data.exif=shown",
    happens="turned: box on object",
    check=shown_fit,
    flags=SHOWN,
    name="exif6_square_shown",
)
def exif6_square_labelled_shown(folder):
    replace_image(
        folder,
        lambda i, p: i.save(p, quality=95, exif=exif_of(6)),
        "train1.jpg",
        (48, 48),
        shown_box(6, height=48, width=48),
        pixels(48, 48),
    )


@case(
    "the same in a PNG",
    happens="turned: box on object",
    report="https://github.com/opencv/opencv/issues/16579",
    check=boxes_fit,
)
def exif6_png(folder):  # eXIf chunk of a PNG
    replace_image(
        folder, lambda i, p: i.save(p, exif=exif_of(6)), "train1.png", (W, H), shown_box(6)
    )


@case(
    "the same in a WebP",
    happens="turned: box on object",
    report="https://github.com/open-mmlab/mmcv/pull/805",
    check=boxes_fit,
)
def exif6_webp(folder):
    replace_image(
        folder,
        lambda i, p: i.save(p, lossless=True, exif=exif_of(6)),
        "train1.webp",
        (W, H),
        shown_box(6),
    )


@case(
    "a TIFF with an orientation",
    refused="train1.tif: image: a TIFF that is rotated; save it upright",
    report="https://github.com/opencv/opencv/issues/10703",
)
def tiff_orientation6(folder):
    replace_image(
        folder, lambda i, p: i.save(p, tiffinfo={274: 6}), "train1.tif", (W, H), shown_box(6)
    )


@case(
    "a TIFF upside down",
    refused="train1.tif: image: a TIFF that is rotated",
    report="https://github.com/python-pillow/Pillow/pull/4063",
)
def tiff_orientation3(folder):
    replace_image(
        folder, lambda i, p: i.save(p, tiffinfo={274: 3}), "train1.tif", (H, W), shown_box(3)
    )


@case(
    "boxes on it as stored, data.exif=stored",
    happens="not turned: box on object",
    check=stored_fit,
    flags=STORED,
)
def exif3_stored(folder):
    replace_image(folder, lambda i, p: i.save(p, quality=95, exif=exif_of(3)), "train1.jpg")


@case(
    "sizes that contradict each other",
    refused=(
        "by their sizes, boxes belong to 1 photographs as stored (train2.png) and to "
        "1 turned by EXIF (train1.jpg)"
    ),
)
def exif_contradicts(folder):
    """Two turned photographs, one with the size as stored and one as shown."""
    exif6_labelled_rotated(folder)
    coco = read(folder)
    Image.fromarray(pixels()).save(folder / "images/train2.png", exif=exif_of(6))
    coco["images"][1]["file_name"] = "train2.png"
    write(folder, "train", coco)


@case(
    "a mirrored photograph beside one whose size tells",
    happens="both as the size tells: boxes on objects",
    says=(
        "2 photographs have an EXIF orientation: boxes belong to them as shown (told by "
        "the size of 1)"
    ),
    check=both_fit,
)
def exif_decided(folder):
    """A photograph whose size tells that boxes are as shown, and a mirrored one."""
    exif6_labelled_rotated(folder)
    coco = read(folder)
    Image.fromarray(pixels()).save(folder / "images/train2.png", exif=exif_of(2))
    coco["annotations"][1]["bbox"] = shown_box(2)
    write(folder, "train", coco)
