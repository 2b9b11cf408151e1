"""Files that are no images, or images that would fill the memory or wait for ever."""

import os
import struct

from inputs import making
from inputs.making import good, replace_image
from PIL import Image

case = making.cases("hostile_files")


@case(
    "HEIC named .jpg",
    refused="train1.jpg: image: a HEIC or AVIF file, whatever its name; convert it to JPEG",
    report="https://github.com/Esri/data-collection-ios/issues/184",
)
def heic_named_jpg(folder):
    box = struct.pack(">I", 24) + b"ftypheic" + b"\0\0\0\0mif1heic"
    replace_image(folder, lambda i, p: p.write_bytes(box + bytes(2000)), "train1.jpg")


@case(
    "file of 0 bytes",
    refused="train1.jpg: image: broken, or no image",
    report="https://github.com/VisionLearningGroup/visda-2018-public/issues/16",
)
def zero_byte(folder):
    replace_image(folder, lambda i, p: p.write_bytes(b""), "train1.jpg")


@case(
    "HTML page named .jpg",
    refused="train1.jpg: image: broken, or no image",
    report="https://github.com/falloutdurham/beginners-pytorch-deep-learning/issues/6",
)
def html_named_jpg(folder):  # a failed download
    replace_image(
        folder, lambda i, p: p.write_bytes(b"<!DOCTYPE html><html>404</html>"), "train1.jpg"
    )


@case(
    "an image of 95 million pixels",
    happens="accepted without a warning of Pillow",
    report="https://github.com/facebookresearch/detectron2/issues/1221",
)
def large_image(folder):  # 10000 x 9500: Pillow warns from 89 Mpixel on
    def save(_, path):
        Image.new("1", (10000, 9500)).save(path, optimize=True)

    replace_image(folder, save, size=(9500, 10000))


@case(
    "a named pipe",
    refused="train1.png: image: not a regular file",
)
def fifo(folder):
    replace_image(folder, lambda i, p: os.mkfifo(p))


@case(
    "a PNG of 30 kB with 15,000 x 15,000 pixels",
    refused="train1.png: image: 15000 x 15000 pixels are more than 100,000,000",
)
def bomb(folder):
    """A file of 30 kB that holds 225 million pixels."""
    replace_image(folder, lambda i, p: Image.new("1", (15000, 15000)).save(p), size=(15000, 15000))


@case(
    "git-lfs pointer in place of the image",
    refused="train1.jpg: image: broken, or no image",
)
def lfs_pointer(folder):
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    replace_image(folder, lambda i, p: p.write_bytes(text), "train1.jpg")


@case("a named pipe as annotation file", refused="train.json: file: it is not a regular file")
def json_pipe(folder):
    good(folder)
    (folder / "train.json").unlink()
    os.mkfifo(folder / "train.json")


@case("a file name of 5,000 characters", refused=".png: image: missing")
def long_name(folder):
    good(folder, lambda coco: coco["images"][0].update(file_name="a" * 5000 + ".png"))
