"""Photographs and detectors given to `predict`."""

import functools
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np
from helpers import fresh_variables, randomised, tiny_options
from inputs import image_files, making
from inputs.making import exif_of, pixels
from PIL import Image

from crnas_jax.arch.staged import Arch
from crnas_jax.checkpoint import save_variables
from crnas_jax.data.transforms import ImageSize
from crnas_jax.export.detector import save_detector
from crnas_jax.models.build import Detector

case = making.cases("prediction", command="predict")
CATEGORIES = [{"id": i, "name": f"class {i}"} for i in (3, 7, 8)]


@functools.cache
def _template():
    """Write a detector once, with random weights but a score of 0.04 for whatever it sees."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="detector"))
    detector = Detector(Arch("resnet_basic", (1, 1, 1, 1), widths=(8, 8, 16, 16)), tiny_options())
    variables = randomised(fresh_variables(detector))
    head = variables["params"]["box_head"]["class"]
    head["kernel"][:], head["bias"][:] = 0, (3, 0, 0, 0)
    save_detector(folder, detector, variables, ImageSize(64, 96), CATEGORIES)
    return folder, variables


def _flags(folder, *more):
    """Write a detector and a photograph; return the flags that run one on the other."""
    shutil.copytree(_template()[0], folder / "detector")
    (folder / "photos").mkdir()
    Image.fromarray(pixels()).save(folder / "photos" / "a.png")
    paths = [f"--detector={folder / 'detector'}", f"--images={folder / 'photos'}"]
    return [*paths, f"--output={folder / 'out.json'}", *more]


def _result(folder):
    return json.loads((folder / "out.json").read_text())


def _sizes_and_scores(folder):
    images = _result(folder)["images"]
    sizes = {
        pathlib.Path(image["file_name"]).name: (image["height"], image["width"]) for image in images
    }
    assert sizes == {
        **{"a.png": (40, 60), "turned.jpg": (60, 40), "turned.PNG": (60, 40)},
        **{"b.gif": (40, 60), "deep.png": (40, 60), "linked.webp": (40, 60)},
    }
    scores = [entry["score"] for entry in _result(folder)["annotations"]]
    assert min(scores) < 0.05


@case(
    "photographs turned by EXIF, GIF, 16 bits, linked folders, --score=0.01",
    happens="boxes in the pixels of each image as shown; links are followed; low scores are kept",
    check=_sizes_and_scores,
    says="in 6 images",
    report="https://github.com/ultralytics/yolov5/issues/405",
)
def photographs(folder):
    flags = _flags(folder, "--score=0.01")
    photos, image = folder / "photos", Image.fromarray(pixels())
    image.save(photos / "turned.jpg", exif=exif_of(6))
    image.save(photos / "turned.PNG", exif=exif_of(8))
    image.save(photos / "b.gif")
    grey = pixels()[..., 0].astype(np.uint16) * 257
    (photos / "deep.png").write_bytes(image_files.png16(grey))
    (folder / "store").mkdir()
    image.save(folder / "store" / "linked.webp")
    (photos / "link").symlink_to(folder / "store")
    (folder / "store" / "loop").symlink_to(photos)
    (photos / ".hidden.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no image")
    return flags


@case(
    "a folder without images", happens="a file without detections, and a note", says="no images in"
)
def no_images(folder):
    flags = _flags(folder)
    (folder / "photos" / "a.png").unlink()
    return flags


@case(
    "half a JPEG",
    refused="half.jpg: image: broken: it is cut off",
    report="https://github.com/pytorch/vision/pull/2471",
)
def half_a_jpeg(folder):
    flags = _flags(folder)
    Image.fromarray(pixels()).save(folder / "photos" / "half.jpg", quality=95)
    content = (folder / "photos" / "half.jpg").read_bytes()
    (folder / "photos" / "half.jpg").write_bytes(content[: len(content) // 2])
    return flags


@case("a folder that is not there", refused="none: --images: missing; give image files or folders")
def no_folder(folder):
    return _flags(folder, f"--images={folder / 'none'}")


@case("a named pipe as image", refused="pipe.png: --images: missing")
def pipe(folder):
    flags = _flags(folder, f"--images={folder / 'pipe.png'}")
    os.mkfifo(folder / "pipe.png")
    return flags


@case("an image of more pixels than --max_pixels", refused="a.png: image: 40 x 60 pixels are more")
def too_large(folder):
    return _flags(folder, "--max_pixels=2000")


@case(
    "zeros over 4 KiB of the weights",
    refused="variables: checkpoint: does not load: ValueError: its content has changed since",
    report="https://github.com/vllm-project/vllm/pull/53537",
)
def zeros_in_weights(folder):
    flags = _flags(folder)
    files = [path for path in (folder / "detector" / "variables").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    middle = len(content) // 2
    largest.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])
    return flags


@case(
    "weights cut off",
    refused="variables: checkpoint: does not load: ValueError: its content has changed since",
    report="https://github.com/jwohlwend/boltz/issues/664",
)
def cut_off_weights(folder):
    flags = _flags(folder)
    files = [path for path in (folder / "detector" / "variables").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-8])
    return flags


@case("a file of the weights gone", refused="variables: checkpoint: does not load: ")
def missing_file(folder):
    flags = _flags(folder)
    (folder / "detector" / "variables" / "_METADATA").unlink()
    (folder / "detector" / "variables.sha256").unlink()  # as in folders of earlier versions
    return flags


@case(
    "a weight of NaN",
    refused="params/box_head/box/bias is not finite",
    report="https://github.com/neoml-lib/neoml/issues/576",
)
def nan_weight(folder):
    flags = _flags(folder)
    variables = _template()[1]
    head = dict(variables["params"]["box_head"])
    head["box"] = {**head["box"], "bias": np.full_like(head["box"]["bias"], np.nan)}
    params = {**variables["params"], "box_head": head}
    save_variables(folder / "detector" / "variables", {**variables, "params": params})
    return flags


@case(
    "a detector.json of another number of classes",
    refused="params/box_head/box/bias: shape (16,), the network has (20,)",
    report="https://github.com/pytorch/vision/issues/2555",
)
def class_count(folder):
    flags = _flags(folder)
    file = folder / "detector" / "detector.json"
    fields = json.loads(file.read_text())
    fields["options"]["num_classes"] = 4
    fields["categories"].append({"id": 9, "name": "class 9"})
    file.write_text(json.dumps(fields))
    return flags


@case(
    "a git-lfs pointer as detector.json",
    refused="detector.json: fields: JSONDecodeError",
    report="https://github.com/NVlabs/CALM/issues/7",
)
def pointer(folder):
    flags = _flags(folder)
    (folder / "detector" / "detector.json").write_text("version https://git-lfs.github.com/spec/v1")
    return flags


@case("a score in percent", refused="flag --score=50: 50.0 is not a number in the range [0.0, 1.0]")
def percent(folder):
    return _flags(folder, "--score=50")


@case("a device as --output", refused="null: file: it is there, and is no regular file")
def device(folder):
    flags = _flags(folder, "--output=/dev/null")
    (folder / "photos" / "a.png").unlink()
    return flags


@case(
    "a run's folder as --detector", refused="detector.json: file: No such file or directory; give "
)
def run_folder(folder):
    flags = _flags(folder)
    (folder / "run").mkdir()
    (folder / "detector").rename(folder / "run" / "searched")
    return [*flags, f"--detector={folder / 'run'}"]
