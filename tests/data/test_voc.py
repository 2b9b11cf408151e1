"""VOC folders: real files against their COCO form, generated files for every possible error."""

import hashlib
import json

import cv2
import numpy as np
import pytest

from crnas_jax.data.voc import CLASS_NAMES, VocSource, voc_annotations
from crnas_jax.errors import UserError

_OBJECTS = """
<object><name>person</name>
  <part><name>head</name>
    <bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>
  <bndbox><xmax>6</xmax><xmin>2</xmin><ymin>3</ymin><ymax>8</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
  <bndbox><xmin>1</xmin><ymin>1.5</ymin><xmax>30.0</xmax><ymax>20</ymax></bndbox></object>
"""


def _xml(name, objects=_OBJECTS, height=20, width=30):
    return (
        f"<annotation><filename>{name}</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def _write(folder, stem, xml):
    """Write an image and its XML file; `stem` is `<year>/<name>`."""
    year, _, stem = stem.partition("/")
    for subfolder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / year / subfolder).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / year / "JPEGImages" / f"{stem}.jpg"), np.zeros((20, 30, 3), np.uint8))
    (folder / year / "Annotations" / f"{stem}.xml").write_text(xml)


@pytest.fixture
def devkit(tmp_path):
    """A VOCdevkit of two years; lists with and without a second column."""
    _write(tmp_path, "VOC2007/000005", _xml("000005.jpg"))
    _write(tmp_path, "VOC2007/000007", _xml("000007.jpg", ""))
    _write(tmp_path, "VOC2012/2008_000002", _xml("2008_000002.jpg"))
    (tmp_path / "VOC2007/ImageSets/Main/trainval.txt").write_text("000007 -1\n\n000005  1\n")
    (tmp_path / "VOC2012/ImageSets/Main/trainval.txt").write_text("2008_000002\r\n")
    return tmp_path


def test_records(devkit):
    source = VocSource(devkit, "VOC2007/trainval+VOC2012/trainval")
    assert len(source) == 3
    assert source.image_ids.tolist() == [1, 2, 3]
    assert source.sizes.tolist() == [[20, 30]] * 3
    assert (source.class_names, source.category_ids) == (list(CLASS_NAMES), list(range(1, 21)))
    assert source.image_names[1:] == [
        str(devkit / "VOC2007" / "JPEGImages" / "000005.jpg"),
        str(devkit / "VOC2012" / "JPEGImages" / "2008_000002.jpg"),
    ]
    assert (source.num_skipped_boxes, source.num_clipped_boxes) == (0, 0)
    source.check_images()
    empty, record = source[0], source[2]
    assert empty["boxes"].shape == (0, 4)
    assert record["image"].shape == (20, 30, 3)
    assert record["boxes"].tolist() == [[1, 2, 6, 8], [0, 0.5, 30, 20]]
    assert record["labels"].tolist() == [15, 8]
    assert record["area"].tolist() == [30, 585]
    assert record["crowd"].tolist() == [False, True]
    flags = [[a["iscrowd"], a["difficult"], a["ignore"]] for a in source.coco["annotations"]]
    assert flags == [[0, 0, 0], [0, 1, 1]] * 2
    assert [a["image_id"] for a in source.coco["annotations"]] == [2, 2, 3, 3]


def test_given_classes_keep_their_order(devkit):
    source = VocSource(devkit, "VOC2012/trainval", ["person", "dog", "cat"])
    assert (source.class_names, source.category_ids) == (["person", "dog", "cat"], [1, 2, 3])
    assert source[0]["labels"].tolist() == [1, 3]
    with pytest.raises(UserError, match=r"000005.xml: object\[1\].name: 'cat' is not a class; "):
        VocSource(devkit, "VOC2007/trainval", ["person"])
    with pytest.raises(UserError, match="'cat' comes twice"):
        VocSource(devkit, "VOC2007/trainval", ["cat", "person", "cat"])


def test_digest_covers_lists_and_xml(devkit):
    def digest():
        return voc_annotations(devkit, "VOC2012/trainval")[1]

    contents = [
        (devkit / "VOC2012" / path).read_bytes()
        for path in ("ImageSets/Main/trainval.txt", "Annotations/2008_000002.xml")
    ]
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    original = digest()
    assert original == hashlib.sha256(digests).hexdigest()
    (devkit / "VOC2012" / "ImageSets" / "Main" / "trainval.txt").write_text("2008_000002 0\n")
    with_other_list = digest()
    (devkit / "VOC2012" / "Annotations" / "2008_000002.xml").write_bytes(contents[1] + b"\n")
    assert len({original, with_other_list, digest()}) == 3


def test_boxes_without_size_or_outside_their_image(devkit):
    boxes = ((9, 3, 6, 8), (20, 3, 40, 8), (40, 3, 45, 8), (0, 0, 4, 4), (3, 3, 3, 3))
    objects = "".join(
        f"<object><name>cat</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    _write(devkit, "VOC2007/000005", _xml("000005.jpg", objects))
    source = VocSource(devkit, "VOC2007/trainval")
    assert (source.num_skipped_boxes, source.num_clipped_boxes) == (2, 1)
    assert source[1]["boxes"].tolist() == [[19, 2, 30, 8], [0, 0, 4, 4], [2, 2, 3, 3]]
    with pytest.raises(UserError, match=r"000005.xml: object\[0\].bndbox: .* has no size inside"):
        VocSource(devkit, "VOC2007/trainval", strict=True)
    # The index of the object counts within its XML file.
    _write(devkit, "VOC2012/2008_000002", _xml("2008_000002.jpg", objects))
    _write(devkit, "VOC2007/000005", _xml("000005.jpg"))
    with pytest.raises(UserError, match=r"2008_000002.xml: object\[0\].bndbox: "):
        VocSource(devkit, "VOC2007/trainval+VOC2012/trainval", strict=True)


def test_another_size_than_the_xml_says(devkit):
    _write(devkit, "VOC2007/000005", _xml("000005.jpg", height=21))
    source = VocSource(devkit, "VOC2007/trainval")
    for read in (source.check_images, lambda: source[1]):
        with pytest.raises(UserError, match=r"000005.xml: size: .*000005.jpg has 20 x 30 pixels"):
            read()


_BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>6</xmax><ymax>8</ymax></bndbox>"
_BOMB = (
    '<?xml version="1.0"{encoding}?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    '<!ENTITY b "&a;&a;&a;">]><annotation><filename>&b;</filename></annotation>'
)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", "xml: no element found"),
        ("", "xml: no element found"),
        ("<html/>", "xml: <html> is not <annotation>"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "xml: "),
        (_BOMB.format(encoding=""), "xml: it declares a document type"),
        ("<!DOCTYPE html><annotation/>", "xml: it declares a document type"),
        ("<annotation/>", "size: missing"),
        ("<annotation><filename>a.jpg</filename></annotation>", "size: missing"),
        (_xml("a.jpg", height=""), "size.height: missing"),
        (_xml("a.jpg", width="wide"), "size.width: 'wide' is not a valid number"),
        (_xml("a.jpg", width=0), "size.width: 0; give a whole number of at least 1"),
        (_xml("a.jpg", height="20.5"), "size.height: 20.5; "),
        (_xml("a.jpg", "<object/>"), r"object\[0\].name: missing"),
        (
            _xml("a.jpg", f"<object><name>elf</name>{_BOX}</object>"),
            r"object\[0\].name: 'elf' is not a class",
        ),
        (
            _xml("a.jpg", f"<object><name>cat</name><part>{_BOX}</part></object>"),
            r"object\[0\].bndbox: missing",
        ),
        (
            _xml("a.jpg", f"<object><name>cat</name>{_BOX.replace('xmax', 'x')}</object>"),
            r"object\[0\].bndbox.xmax: missing",
        ),
        (
            _xml("a.jpg", f"<object><name>cat</name>{_BOX.replace('8', 'nan')}</object>"),
            r"object\[0\].bndbox.ymax: 'nan' is not a valid number",
        ),
        (
            _xml("a.jpg", f"<object><name>cat</name>{_BOX.replace('8', '1e99')}</object>"),
            r"object\[0\].bndbox.ymax: '1e99' is not a valid number",
        ),
        (
            _xml("a.jpg", f"<object><name>cat</name><difficult>2</difficult>{_BOX}</object>"),
            r"object\[0\].difficult: 2; give 0 or 1",
        ),
    ],
)
def test_faulty_xml(devkit, xml, message):
    _write(devkit, "VOC2007/000005", xml)
    with pytest.raises(UserError, match=f"000005.xml: {message}"):
        VocSource(devkit, "VOC2007/trainval")


def test_document_types_are_refused_in_any_encoding(devkit):
    content = _BOMB.format(encoding=" encoding='utf-16'").encode("utf-16")
    (devkit / "VOC2007/Annotations/000005.xml").write_bytes(content)
    with pytest.raises(UserError, match="it declares a document type"):
        VocSource(devkit, "VOC2007/trainval")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "trainval.txt: images: there are none"),
        (b"000006\n", "000006.xml: file: No such file"),
        (b"\xff\xfe\n", "trainval.txt: text: "),
        (
            b"../Annotations/000005\n",
            "trainval.txt: images: '../Annotations/000005' is not a file",
        ),
        (b"000005\n000005\n", "000005.xml: image: VOC2007/JPEGImages/000005.jpg comes twice"),
        (b"000007\n", "VOC2007/trainval: no object in it"),
    ],
)
def test_faulty_lists(devkit, content, message):
    (devkit / "VOC2007/ImageSets/Main/trainval.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        VocSource(devkit, "VOC2007/trainval")


@pytest.mark.parametrize("split", ["", "trainval", "VOC2007/", "/trainval", "VOC2007/trainval+"])
def test_faulty_splits(devkit, split):
    with pytest.raises(UserError, match=r"split: .* is no <year>/<list>"):
        VocSource(devkit, split)


def test_missing_files(devkit):
    with pytest.raises(UserError, match=r"Main/test.txt: file: No such file"):
        VocSource(devkit, "VOC2007/test")
    with pytest.raises(UserError, match="leads out of"):
        VocSource(devkit / "VOC2012", "../VOC2007/trainval")
    (devkit / "VOC2007/JPEGImages/000005.jpg").unlink()
    with pytest.raises(UserError, match=r"000005.xml: image: missing: .* has no 000005.jpg"):
        VocSource(devkit, "VOC2007/trainval")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_real_annotations(shared_data, tmp_path, split):
    real = shared_data / "voc100"
    expected = json.loads((real / f"{split}.json").read_text())
    year = tmp_path / "VOC2012"
    (year / "ImageSets" / "Main").mkdir(parents=True)
    (year / "Annotations").symlink_to(real / "Annotations")
    (year / "JPEGImages").symlink_to(real / "images")
    names = [image["file_name"] for image in expected["images"]]
    stems = "\n".join(name.removesuffix(".jpg") for name in names)
    (year / "ImageSets" / "Main" / f"{split}.txt").write_text(stems)

    source = VocSource(tmp_path, f"VOC2012/{split}")
    assert source.image_names == [str(year / "JPEGImages" / name) for name in names]
    sizes = [[image["height"], image["width"]] for image in expected["images"]]
    assert source.sizes.tolist() == sizes
    assert source.class_names == [category["name"] for category in expected["categories"]]
    assert (source.num_skipped_boxes, source.num_clipped_boxes) == (0, 0)
    source.check_images()
    first_image, first = expected["images"][0]["id"], expected["annotations"][0]["id"]
    fields = ("category_id", "bbox", "area", "iscrowd", "ignore", "difficult")
    for actual, known in zip(source.coco["annotations"], expected["annotations"], strict=True):
        assert {field: actual[field] for field in fields} == {f: known[f] for f in fields}
        assert actual["image_id"] - 1 == known["image_id"] - first_image
        assert actual["id"] - 1 == known["id"] - first
    difficult = [a["difficult"] for a in expected["annotations"] if a["image_id"] == first_image]
    assert source[0]["crowd"].tolist() == [bool(flag) for flag in difficult]
