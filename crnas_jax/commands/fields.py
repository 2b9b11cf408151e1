"""Subcommand that measures and draws effective receptive fields."""

import json
import pathlib
import re
import sys

from absl import flags

from crnas_jax.commands.command import Command, define_json
from crnas_jax.errors import UserError


def _flags(values, _):
    text = "Name in the zoo, or a .json with an architecture: random weights; may be repeated."
    flags.DEFINE_multi_string("arch", [], text, flag_values=values)
    text = "Folder of a trained detector; may be repeated."
    flags.DEFINE_multi_string("detector", [], text, flag_values=values)
    text = "Random networks of each architecture, whose fields are averaged."
    flags.DEFINE_integer("networks", 5, text, 1, flag_values=values)
    flags.DEFINE_list("levels", ["3", "4", "5"], "Pyramid levels.", flag_values=values)
    text = "Height x width of the input in pixels; a trained detector's is its own unless given."
    flags.DEFINE_string("size", "512x512", text, flag_values=values)
    text = "An image or a folder of images; may be repeated. Gaussian noise when not given."
    flags.DEFINE_multi_string("images", [], text, flag_values=values)
    flags.DEFINE_integer("num_images", 8, "Number of images.", 1, flag_values=values)
    flags.DEFINE_integer("batch_size", 4, "Images in a call.", 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of weights and noise.", 0, flag_values=values)
    text = "Folder to write; a new one: fields.json, fields.svg, fields.png."
    flags.DEFINE_string("output", None, text, flag_values=values)
    define_json(values)


def _run(values):
    from crnas_jax.analysis import erf, heat_maps, report
    from crnas_jax.data.transforms import ImageSize
    from crnas_jax.evaluation.predict import list_images, read_image
    from crnas_jax.runtime.files import write_json

    output = pathlib.Path(values.output)
    if output.exists():
        raise UserError(output, "--output", "it exists already", "name a new folder")
    if not values.arch and not values.detector:
        raise UserError("command line", "--arch", "missing", "give --arch or --detector")
    levels, size = _levels(values.levels), _size(values.size)
    files = [file for path in values.images for file in list_images(path)]
    if values.images and not files:
        raise UserError(", ".join(values.images), "--images", "no images", "give some")
    is_portrait, found = size[0] > size[1], {}
    detectors = _detectors(values)
    try:
        output.mkdir(parents=True)
    except OSError as error:
        problem = error.strerror or "unwritable"
        raise UserError(output, "--output", problem, "name a folder that can be made") from error
    for name, (detector, variables, image_size) in detectors.items():
        if image_size is None or values["size"].present:
            image_size = ImageSize(min(size), max(size), detector.options.neck.coarsest_stride)
        if files:
            pixels = map(read_image, files)
            images = erf.plates(pixels, image_size, values.num_images, is_portrait)
        else:
            images = erf.noise(values.num_images, image_size.canvas(is_portrait), values.seed)
        height, width = images.shape[1:3]
        text = f"{name}: {len(variables)} x {len(images)} images of {height} x {width}"
        print(text, file=sys.stderr, flush=True)
        fields = erf.receptive_fields(detector, variables, images, levels, values.batch_size)
        found[name] = [field.to_json() for field in fields]
    write_json(output / "fields.json", {"format": 1, "fields": found})
    for suffix in ("svg", "png"):
        heat_maps.save(found, output / f"fields.{suffix}")
    print(json.dumps(found) if values.json else report.receptive_fields(found))


def _levels(texts):
    levels = [int(text) for text in texts if re.fullmatch(r"[1-9]", text.strip())]
    if len(levels) != len(texts) or not levels:
        problem, remedy = ",".join(texts), "give numbers such as 3,4,5"
        raise UserError("command line", "--levels", problem, remedy)
    return levels


def _size(text):
    match = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", text)
    if not match:
        raise UserError("command line", "--size", text, "give HEIGHTxWIDTH, as 512x512")
    return tuple(map(int, match.groups()))


def _detectors(values):
    """Return by name the detector, its weights (several where they are random), and its size."""
    import jax

    import crnas_jax
    from crnas_jax.arch import zoo
    from crnas_jax.models.build import Detector
    from crnas_jax.models.rcnn import DetectorOptions

    detectors = {}
    for name in values.arch:
        detector = Detector(zoo.find(name), DetectorOptions(num_classes=80))
        keys = jax.random.split(jax.random.key(values.seed), values.networks)
        label = _label(pathlib.Path(name).stem, name, "random", detectors)
        detectors[label] = detector, [detector.init(key) for key in keys], None
    for folder in values.detector:
        predictor = crnas_jax.load_detector(folder)
        short = "/".join(pathlib.Path(folder).parts[-2:])
        label = _label(short, folder, "trained", detectors)
        detectors[label] = predictor.detector, [predictor.variables], predictor.size
    return detectors


def _label(short, whole, kind, taken):
    """Return a name that is not taken yet."""
    label = f"{short}, {kind}"
    return label if label not in taken else f"{whole}, {kind}"


COMMANDS = {
    "visualize-erf": Command(
        "Draw what a network's pyramid levels see: effective receptive fields and their widths.",
        "--arch=resnet50 --arch=cr_resnet50 --output=fields   (or --detector=runs/mine/returned)",
        _flags,
        _run,
        ("output",),
    )
}
