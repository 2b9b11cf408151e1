"""PASCAL VOC's layout."""

import pathlib

import numpy as np
from inputs import making
from inputs.making import BOX, SPLITS, H, W, boxes_fit, boxes_fit_voc, pixels, source
from PIL import Image

case = making.cases("voc", flags=making.VOC)

VOC = (
    "--config.data.name=voc",
    *(f"--config.data.{split}=VOC2007/{split}" for split in SPLITS),
    "--config.data.class_names=('cell',)",
)


def devkit(folder, xml=lambda split, text: text, stem=lambda s: s, suffix=".png", classes="cell"):
    folder = pathlib.Path(folder) / "VOC2007"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split in SPLITS:
        name = stem(split + "1")
        Image.fromarray(pixels()).save(folder / "JPEGImages" / f"{name}{suffix}")
        x, y, w, h = BOX
        text = (
            f"<annotation><folder>f</folder><filename>{name}{suffix}</filename>"
            f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
            f"<object><name>{classes}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            "</annotation>"
        )
        text = xml(split, text)
        mode = text if isinstance(text, bytes) else text.encode()
        (folder / "Annotations" / f"{name}.xml").write_bytes(mode)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(name + "\n")


def _train(change):
    return lambda split, text: change(text) if split == "train" else text


def shown_fit(folder):
    for index in (0, 1):
        boxes_fit(folder, voc=True, index=index)


def own_picture(folder):
    assert source(folder, voc=True).image_names == [str(folder / "VOC2007/JPEGImages/train1.png")]
    boxes_fit_voc(folder)


def fraction_is_kept(folder):
    np.testing.assert_allclose(source(folder, voc=True)[0]["boxes"][0, 1], 5.3, rtol=1e-5)


@case(
    "no <difficult>",
    happens="taken as 0",
    report="https://github.com/open-mmlab/mmdetection/issues/4585",
    check=boxes_fit_voc,
)
def no_difficult(folder):
    devkit(folder, lambda s, t: t.replace("<difficult>0</difficult>", ""))


@case(
    "coordinates with fractions",
    happens="read",
    report="https://github.com/Tony607/voc2coco/issues/5",
    check=fraction_is_kept,
)
def float_box(folder):
    devkit(folder, _train(lambda t: t.replace("<ymin>6<", "<ymin>6.300000190734863<")))


@case(
    "<filename> without suffix (labelImg, BCCD)",
    happens="the list's name decides",
    says="train: 1 XML files name another image in <filename>",
    report="https://github.com/experiencor/keras-yolo2/issues/315",
    check=boxes_fit_voc,
)
def no_extension(folder):  # BCCD, older labelImg, Label Studio
    devkit(folder, lambda s, t: t.replace(".png</filename>", "</filename>"))


@case(
    "files renamed, <filename> not",
    happens="the list's name decides",
    says="XML files name another image in <filename>; the list's name decides",
    report="https://github.com/AIWintermuteAI/aXeleRate/issues/48",
    check=boxes_fit_voc,
)
def renamed(folder):  # images and xml renamed, <filename> not
    devkit(folder, _train(lambda t: t.replace("train1.png", "IMG_20191130.png")))


@case(
    ".png in <filename>, .jpg on disk",
    happens="found",
    report="https://github.com/datitran/raccoon_dataset/pull/27",
    check=boxes_fit_voc,
)
def wrong_suffix(folder):  # raccoon_dataset: .png in the xml, .jpg on disk
    devkit(folder, _train(lambda t: t.replace("train1.jpg", "train1.png")), suffix=".jpg")


@case(
    "coordinates that count from 0",
    happens="the plan warns",
    says="WARNING: 1 boxes begin at pixel 0, and VOC's pixels count from 1",
    report="https://github.com/umautobots/vod-converter/issues/26",
)
def zero_based(folder):  # 0-based xml (KITTI/labelme converters): object begins at column 0
    devkit(folder)
    folder = pathlib.Path(folder) / "VOC2007"
    Image.fromarray(pixels(box=[0, 0, 20, 10])).save(folder / "JPEGImages" / "train1.png")
    file = folder / "Annotations" / "train1.xml"
    text = file.read_text()
    for old, new in (
        ("<xmin>5<", "<xmin>0<"),
        ("<ymin>6<", "<ymin>0<"),
        ("<xmax>24<", "<xmax>19<"),
        ("<ymax>15<", "<ymax>9<"),
    ):
        text = text.replace(old, new)
    file.write_text(text)


@case(
    "<width>0</width>",
    refused="train1.xml: size.height: 0; give a whole number of at least 1",
    report="https://github.com/autogluon/autogluon/issues/1240",
)
def size_zero(folder):
    devkit(
        folder,
        _train(
            lambda t: t.replace(f"<width>{W}<", "<width>0<").replace(f"<height>{H}<", "<height>0<")
        ),
    )


@case(
    "no <size>",
    refused="train1.xml: size: missing",
    report="https://github.com/Megvii-BaseDetection/YOLOX/issues/1106",
)
def no_size(folder):
    devkit(folder, _train(lambda t: t[: t.index("<size>")] + t[t.index("</size>") + 7 :]))


@case(
    "a class in other letters",
    refused="train1.xml: object[0].name: 'Cell' is not a class",
    report="https://github.com/dmlc/gluon-cv/issues/609",
)
def other_letters(folder):
    devkit(folder, _train(lambda t: t.replace("<name>cell<", "<name>Cell<")))


@case(
    "xmin above xmax, the only object",
    refused="train: no object in it: 1 boxes without size or outside their image are left out",
    report="https://github.com/microsoft/VoTT/issues/760",
)
def swapped_corners(folder):  # VoTT 760 / flips: xmin > xmax
    devkit(
        folder,
        _train(
            lambda t: (
                t.replace("<xmin>5<", "<xmin>24<").replace("<xmax>24<", "<xmax>5<", 1)
                if "<xmin>5<" in t
                else t
            )
        ),
    )


@case(
    "image names with spaces in the list",
    happens="found",
    report="https://github.com/bubbliiiing/efficientdet-pytorch/issues/16",
    check=boxes_fit_voc,
)
def spaces(folder):  # image names with spaces in the list
    devkit(folder, stem=lambda s: s.replace("1", " 1"))


@case(
    "byte order mark before the XML",
    happens="read",
    report="https://github.com/openrewrite/rewrite/issues/1382",
    check=boxes_fit_voc,
)
def bom(folder):
    devkit(folder, _train(lambda t: b"\xef\xbb\xbf" + t.encode()))


@case(
    "XML in GBK without a declaration",
    refused="train1.xml: xml: not well-formed",
    report="https://github.com/konveyor/analyzer-lsp/issues/900",
)
def gbk(folder):  # class of Chinese characters, xml saved as GBK without a declaration
    devkit(folder, _train(lambda t: t.replace("<folder>f<", "<folder>细胞<").encode("gbk")))


@case(
    "xmin above xmax beside a good object",
    happens="left out and counted",
    says="train: 1 boxes without size",
    report="https://github.com/WenyaoL/tools-VOC/issues/3",
)
def swapped_second(folder):  # the same beside a good object
    good = (
        "<object><name>cell</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>24</xmax>"
        "<ymax>15</ymax></bndbox></object></annotation>"
    )
    bad = good.replace("<xmin>5", "<xmin>24").replace("<xmax>24", "<xmax>5")
    devkit(folder, _train(lambda t: t.replace("</annotation>", bad)))


@case(
    "an XML copied for another picture",
    happens="the picture of the list, not the one that <filename> names",
    check=own_picture,
)
def copied_xml(folder):
    devkit(folder, _train(lambda text: text.replace("train1.png", "test1.png")))


@case(
    "no image for an entry of the list",
    refused="Annotations/train1.xml: image: missing: ",
)
def missing_image(folder):
    devkit(folder)
    (folder / "VOC2007/JPEGImages/train1.png").unlink()


@case(
    "every object of test is difficult",
    refused="test: all 1 objects have iscrowd or difficult: no object to find in it",
    report="https://github.com/yhenon/keras-frcnn/issues/41",
)
def all_difficult(folder):
    devkit(folder, lambda s, t: t.replace("<difficult>0<", "<difficult>1<") if s == "test" else t)


@case(
    "a list of one class, with a second column",
    happens="the column is left out",
    check=boxes_fit_voc,
)
def second_column(folder):
    devkit(folder)
    (folder / "VOC2007/ImageSets/Main/train.txt").write_text("train1  1\n")


@case(
    "an XML that declares entities",
    refused="train1.xml: xml: it declares a document type",
)
def entity_bomb(folder):
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]>'
    devkit(folder, _train(lambda text: bomb + text))


@case(
    "a list with ../ in it",
    refused="'../../x' is not a file name",
)
def leads_out(folder):
    devkit(folder)
    (folder / "VOC2007/ImageSets/Main/train.txt").write_text("../../x\n")


@case(
    "boxes on photographs turned by EXIF, told by a size",
    happens="all photographs are turned",
    says=(
        "train: 2 photographs have an EXIF orientation: boxes belong to them as shown "
        "(told by the size of 1)"
    ),
    check=shown_fit,
)
def shown(folder):
    """Two photographs: one whose size tells, one upside down whose size does not."""
    devkit(folder)
    voc = folder / "VOC2007"
    xml = (voc / "Annotations/train1.xml").read_text()
    for name, orientation, image in (("train2", 6, pixels()), ("train1", 3, pixels())):
        exif = Image.Exif()
        exif[0x0112] = orientation
        # Stored so that a viewer shows `image`.
        stored = {6: np.rot90(image), 3: image[::-1, ::-1]}[orientation]
        Image.fromarray(np.ascontiguousarray(stored)).save(
            voc / f"JPEGImages/{name}.png", exif=exif
        )
        (voc / f"Annotations/{name}.xml").write_text(xml.replace("train1", name))
    (voc / "ImageSets/Main/train.txt").write_text("train1\ntrain2\n")
