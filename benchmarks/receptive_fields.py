"""The paper's figure 1: receptive fields of ResNet-50, SCR-, CR-ResNet-50, and of trained networks.

python benchmarks/receptive_fields.py
python benchmarks/receptive_fields.py --detector=runs/bccd/baseline --detector=runs/bccd/searched \
    --images=DATA/images

Random networks see Gaussian noise on a plate of 512 x 512; trained ones the first photographs on
the canvas that they were trained with. What was measured before stays in the file.
"""

import argparse
import json
import pathlib

import common
import jax

import crnas_jax
from crnas_jax.analysis import erf
from crnas_jax.arch import zoo
from crnas_jax.evaluation.predict import list_images, read_image
from crnas_jax.models.build import Detector
from crnas_jax.models.rcnn import DetectorOptions

NAMES = ("resnet50", "scr_resnet50", "cr_resnet50")
LEVELS, SIDE = (3, 4, 5), 512


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--num_images", type=int, default=4)
    parser.add_argument("--detector", action="append", default=[])
    parser.add_argument("--images")
    arguments = parser.parse_args()
    file = common.RESULTS / f"receptive_fields_{jax.devices()[0].platform}.json"
    figures = json.loads(file.read_text())["figures"] if file.exists() else {}
    if arguments.detector:
        files = list_images(arguments.images)[: arguments.num_images]
        figures["bccd"] = {
            f"{pathlib.Path(folder).name}, trained": _trained(folder, files)
            for folder in arguments.detector
        }
    else:
        figures["random"] = {
            f"{name}, random": _random(name, arguments.networks, arguments.num_images)
            for name in NAMES
        }
    ratios = {
        f"{name}, p{field['level']}": field["ratio"]
        for found in figures.values()
        for name, fields in found.items()
        for field in fields
    }
    common.report("receptive_fields", {"width over anchor": ratios, "figures": figures})


def _random(name, num_networks, num_images):
    detector = Detector(zoo.get(name), DetectorOptions(num_classes=80))
    keys = jax.random.split(jax.random.key(0), num_networks)
    variables, images = [detector.init(key) for key in keys], erf.noise(num_images, (SIDE, SIDE))
    fields = erf.receptive_fields(detector, variables, images, LEVELS, 2)
    return [field.to_json() for field in fields]


def _trained(folder, files):
    predictor = crnas_jax.load_detector(folder)
    images = erf.plates(map(read_image, files), predictor.size, len(files))
    fields = erf.receptive_fields(predictor.detector, [predictor.variables], images, LEVELS, 2)
    return [field.to_json() for field in fields]


if __name__ == "__main__":
    main()
