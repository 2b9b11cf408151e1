"""Image files of any format, whole, broken and hostile."""

import io
import pathlib
import struct
import zlib

import numpy as np
from inputs import making
from inputs.making import (
    BOX,
    H,
    W,
    boxes_fit,
    good,
    pixels,
    replace_image,
    source,
)
from PIL import Image

case = making.cases("image_files")


def png16(grey):
    """16-bit grey PNG of uint16 [H, W]."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = grey.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _cut(image, path, fmt, keep, **options):
    data = io.BytesIO()
    image.save(data, fmt, **options)
    path.write_bytes(data.getvalue()[: int(len(data.getvalue()) * keep)])


def upper_bits(folder):
    image = source(folder)[0]["image"]
    assert image[6:14, 6:22].mean() == 220
    boxes_fit(folder)


def boxes_fit_hidden(folder):
    """The object is where it should be, whatever colour was hidden around it."""
    x, y, w, h = BOX
    image = source(folder)[0]["image"].astype(int)
    assert abs(image[y : y + h, x : x + w] - (220, 20, 20)).max() == 0


@case(
    "CMYK JPEG",
    happens="read, box on object",
    report="https://github.com/opencv/opencv/issues/25274",
    check=boxes_fit,
)
def cmyk_jpeg(folder):
    replace_image(folder, lambda i, p: i.convert("CMYK").save(p, quality=95), "train1.jpg")


@case(
    "CMYK TIFF",
    happens="read, box on object",
    report="https://github.com/roboflow/supervision/pull/2602",
    check=boxes_fit,
)
def cmyk_tiff(folder):
    replace_image(folder, lambda i, p: i.convert("CMYK").save(p), "train1.tif")


@case(
    "16-bit grey PNG",
    happens="the upper 8 bits",
    says="train: 1 images have samples of 16 bits",
    report="https://github.com/ultralytics/yolov5/issues/8481",
    check=upper_bits,
)
def png16_full_range(folder):
    grey = pixels()[..., 0].astype(np.uint16) * 257
    replace_image(folder, lambda i, p: p.write_bytes(png16(grey)))


@case(
    "12 bits of data in a 16-bit PNG",
    happens="nearly black; the plan says that the upper 8 bits are read",
    says="scale data of fewer bits to the full range",
    report="https://github.com/opencv/opencv/issues/15969",
)
def png16_12bit(folder):  # microscope or DICOM: 12 bits of data in 16
    grey = pixels()[..., 0].astype(np.uint16) * 16
    replace_image(folder, lambda i, p: p.write_bytes(png16(grey)))


@case(
    "float TIFF",
    refused="train1.tif: image: a TIFF of F samples",
    report="https://github.com/opencv/opencv/issues/7025",
)
def float_tiff(folder):  # values 0..1
    grey = pixels()[..., 0].astype(np.float32) / 255
    replace_image(folder, lambda i, p: Image.fromarray(grey).save(p), "train1.tif")


@case(
    "32-bit TIFF",
    refused="train1.tif: image: a TIFF of I samples",
    report="https://github.com/opencv/opencv-python/issues/220",
)
def int32_tiff(folder):
    grey = pixels()[..., 0].astype(np.int32) * 100
    replace_image(folder, lambda i, p: Image.fromarray(grey).save(p), "train1.tif")


@case(
    "16-bit TIFF in which white is 0",
    happens="read, box on object",
    report="https://github.com/opencv/opencv/issues/9550",
    check=boxes_fit,
)
def tiff_white_is_zero_16(folder):
    """16-bit TIFF whose photometric interpretation is WhiteIsZero (opencv 9550)."""

    def save(_, path):
        grey = 65535 - pixels()[..., 0].astype(np.uint16) * 257
        data = grey.astype("<u2").tobytes()
        tags = [
            (256, 3, 1, W),
            (257, 3, 1, H),
            (258, 3, 1, 16),
            (259, 3, 1, 1),
            (262, 3, 1, 0),
            (273, 4, 1, 8),
            (277, 3, 1, 1),
            (278, 3, 1, H),
            (279, 4, 1, len(data)),
        ]
        ifd = (
            struct.pack("<H", len(tags))
            + b"".join(
                struct.pack("<HHI", t, k, n)
                + (struct.pack("<HH", v, 0) if k == 3 else struct.pack("<I", v))
                for t, k, n, v in tags
            )
            + struct.pack("<I", 0)
        )
        path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd)

    replace_image(folder, save, "train1.tif")


@case(
    "palette PNG with transparency",
    happens="transparency is dropped",
    report="https://github.com/nihui/realcugan-ncnn-vulkan/issues/15",
    check=boxes_fit_hidden,
)
def palette_transparency(folder):
    """All but the object is transparent, with green below."""

    def save(_, path):
        x, y, w, h = BOX
        index = np.zeros((H, W), np.uint8)
        index[y : y + h, x : x + w] = 1
        image = Image.fromarray(index, "P")
        image.putpalette([0, 255, 0, 220, 20, 20] + [0] * 762)
        image.save(path, transparency=b"\x00\xff")

    replace_image(folder, save)


@case(
    "RGBA PNG",
    happens="transparency is dropped",
    report="https://github.com/NVIDIA/DIGITS/issues/85",
    check=boxes_fit_hidden,
)
def rgba_png(folder):
    """RGBA PNG: a red object on a transparent background whose hidden colour is white."""
    pixels = np.dstack([np.full((H, W, 3), 255, np.uint8), np.zeros((H, W), np.uint8)])
    x, y, w, h = BOX
    pixels[y : y + h, x : x + w] = (220, 20, 20, 255)
    replace_image(folder, lambda i, p: Image.fromarray(pixels, "RGBA").save(p))


@case(
    "grey PNG with alpha",
    happens="read, box on object",
    report="https://github.com/DanBloomberg/leptonica/issues/426",
    check=boxes_fit,
)
def grey_alpha_png(folder):
    grey = pixels()[..., 0]
    with_alpha = np.dstack([grey, np.full((H, W), 255, np.uint8)])
    replace_image(folder, lambda i, p: Image.fromarray(with_alpha, "LA").save(p))


@case(
    "animated GIF",
    happens="its first frame",
    report="https://github.com/qinenergy/webvision-2.0-benchmarks/issues/6",
    check=boxes_fit,
)
def animated_gif(folder):
    def save(image, path):
        image.save(
            path, save_all=True, append_images=[Image.fromarray(pixels()[::-1])], duration=100
        )

    replace_image(folder, save, "train1.gif")


@case(
    "GIF named .png",
    happens="read",
    report="https://github.com/ultralytics/yolov5/pull/6403",
    check=boxes_fit,
)
def gif_named_png(folder):
    def save(image, path):
        data = io.BytesIO()
        image.save(data, "GIF")
        path.write_bytes(data.getvalue())

    replace_image(folder, save)


@case(
    "JPEG cut off",
    refused="train1.jpg: image: broken: it is cut off",
    report="https://github.com/tensorflow/models/issues/9424",
)
def truncated_jpeg(folder):
    replace_image(folder, lambda i, p: _cut(i, p, "JPEG", 0.5, quality=95), "train1.jpg")


@case(
    "progressive JPEG cut off",
    refused="train1.jpg: image: broken: it is cut off",
    report="https://github.com/pjreddie/darknet/issues/720",
)
def truncated_progressive(folder):
    replace_image(
        folder, lambda i, p: _cut(i, p, "JPEG", 0.6, quality=95, progressive=True), "train1.jpg"
    )


@case(
    "PNG cut off",
    refused="train1.png: image: broken",
    report="https://github.com/opencv/opencv/issues/23584",
)
def truncated_png(folder):
    replace_image(folder, lambda i, p: _cut(i, p, "PNG", 0.5))


@case(
    "WebP cut off",
    refused="train1.webp: image: broken",
    report="https://github.com/pytorch/vision/issues/138",
)
def truncated_webp(folder):
    replace_image(folder, lambda i, p: _cut(i, p, "WEBP", 0.5, lossless=True), "train1.webp")


@case(
    "TIFF cut off",
    refused="train1.tif: image: broken",
    report="https://github.com/PathologyDataScience/BCSS/issues/5",
)
def truncated_tiff(folder):
    """The IFD of Pillow's TIFF is at the front, the pixels are cut."""
    replace_image(folder, lambda i, p: _cut(i, p, "TIFF", 0.5), "train1.tif")


@case(
    "BMP cut off",
    refused="train1.bmp: image: broken",
    report="https://github.com/kirumang/Pix2Pose/issues/2",
)
def truncated_bmp(folder):
    replace_image(folder, lambda i, p: _cut(i, p, "BMP", 0.5), "train1.bmp")


@case(
    "JPEG with a second picture behind it (phones)",
    happens="the first picture",
    report="https://github.com/ultralytics/yolov5/issues/2446",
    check=boxes_fit,
)
def mpo(folder):
    def save(image, path):
        image.save(
            path, "MPO", save_all=True, append_images=[Image.fromarray(pixels()[::-1])], quality=95
        )

    replace_image(folder, save, "train1.jpg")


@case(
    "the same cut inside the first picture",
    refused="train1.jpg: image: broken: it is cut off",
    report="https://github.com/python-pillow/Pillow/issues/1138",
)
def truncated_mpo(folder):
    """A phone's MPO cut inside the first picture."""

    def save(image, path):
        big = Image.fromarray(np.repeat(np.repeat(np.asarray(image), 1, 0), 1, 1))
        data = io.BytesIO()
        big.save(data, "MPO", save_all=True, append_images=[big], quality=95)
        path.write_bytes(data.getvalue()[: len(data.getvalue()) // 4])

    replace_image(folder, save, "train1.jpg")


@case(
    "JPEG cut off, with the end marker of its thumbnail",
    refused="train1.jpg: image: broken: it is cut off",
    report="https://github.com/ultralytics/yolov5/pull/3638",
)
def truncated_jpeg_thumbnail(folder):
    """A JPEG cut early, whose EXIF thumbnail brings an end marker into the last 4096 bytes."""

    def save(image, path):
        thumbnail = io.BytesIO()
        image.resize((30, 20)).save(thumbnail, "JPEG")
        data, thumb = io.BytesIO(), thumbnail.getvalue()
        # EXIF with IFD0 (empty) and IFD1 (thumbnail)
        exif = (
            b"Exif\0\0II*\0\x08\0\0\0"
            + struct.pack("<HI", 0, 14)
            + struct.pack("<H", 2)
            + struct.pack("<HHII", 0x201, 4, 1, 44)
            + struct.pack("<HHII", 0x202, 4, 1, len(thumb))
            + struct.pack("<I", 0)
            + thumb
        )
        image.save(data, "JPEG", quality=95, exif=exif)
        path.write_bytes(data.getvalue()[: int(len(data.getvalue()) * 0.6)])

    replace_image(folder, save, "train1.jpg")


@case(
    "PNG named .jpg",
    happens="read",
    report="https://github.com/karpathy/neuraltalk2/issues/13",
    check=boxes_fit,
)
def png_named_jpg(folder):
    replace_image(folder, lambda i, p: i.save(p, "PNG"), "train1.jpg")


@case(
    "suffix .JPG",
    happens="read",
    report="https://github.com/njvisionpower/Safety-Helmet-Wearing-Dataset/issues/22",
    check=boxes_fit,
)
def upper_suffix(folder):
    replace_image(folder, lambda i, p: i.save(p, "JPEG", quality=95), "DSC0001.JPG")


@case(
    "name in Hebrew, Chinese, with spaces",
    happens="read",
    report="https://github.com/opencv/opencv/issues/14132",
    check=boxes_fit,
)
def unicode_name(folder):
    replace_image(folder, lambda i, p: i.save(p), "ערב 你好 é.png")


@case(
    "name composed otherwise on disk (zip of a Mac)",
    happens="found",
    report="https://github.com/llmsresearch/paperbanana/pull/240",
    check=boxes_fit,
)
def nfd_name(folder):  # zip from a Mac: NFD on disk, NFC in the json
    folder = pathlib.Path(folder)
    replace_image(folder, lambda i, p: i.save(p), "Übung1.png")
    (folder / "images" / "Übung1.png").rename(folder / "images" / "U\u0308bung1.png")


@case(
    "a symbolic link to the file",
    happens="followed",
    report="https://github.com/cocodataset/cocoapi/issues/24",
    check=boxes_fit,
)
def symlink(folder):
    def save(image, path):
        (path.parent.parent / "store").mkdir()
        image.save(path.parent.parent / "store" / "a.png")
        path.symlink_to(path.parent.parent / "store" / "a.png")

    replace_image(folder, save)


@case(
    "TIFF of several pages",
    happens="its first page",
    report="https://github.com/paperless-ngx/paperless-ngx/pull/2335",
    check=boxes_fit,
)
def multipage_tiff(folder):
    def save(image, path):
        image.save(path, save_all=True, append_images=[Image.fromarray(pixels()[::-1])])

    replace_image(folder, save, "train1.tif")


@case(
    "GIF cut off",
    refused="train1.gif: image: broken",
)
def truncated_gif(folder):
    replace_image(folder, lambda i, p: _cut(i, p, "GIF", 0.5), "train1.gif")


@case(
    "a symbolic link to the folder",
    happens="followed",
    check=boxes_fit,
)
def linked_folder(folder):
    good(folder)
    (folder / "images").rename(folder / "store")
    (folder / "images").symlink_to(folder / "store")


@case(
    "JPEG with bytes between its segments", happens="passed over, as decoders do", check=boxes_fit
)
def padded_jpeg(folder):
    def save(image, path):
        image.save(path, quality=95)
        content = path.read_bytes()
        path.write_bytes(content[:20] + b"\0\0\0" + content[20:])

    replace_image(folder, save, "train1.jpg")
