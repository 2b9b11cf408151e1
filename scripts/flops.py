"""Multiply-adds and parameters of a detector, by part: a table, or with --json one line of JSON.

python scripts/flops.py --arch=cr_resnet50 --detector=faster_rcnn --size=800x1088 --rois=1000 --json
python scripts/flops.py --arch=resnet101 --detector=mask_rcnn --convention=thop2019   (the paper's)
python scripts/flops.py --arch=runs/mine/operation_search/result.json
"""

import dataclasses
import json
import re

from absl import flags

from crnas_jax import cli
from crnas_jax.arch import zoo
from crnas_jax.arch.cost import detectors as cost
from crnas_jax.errors import UserError

_ARCH = flags.DEFINE_string(
    "arch", None, "Of the zoo (resnet50, cr_resnet50, ...), or a .json with an architecture."
)
_DETECTOR = flags.DEFINE_enum("detector", "faster_rcnn", cost.DETECTORS, "Which detector.")
_NECK = flags.DEFINE_enum("neck", "fpn", cost.NECKS, "Which neck.")
_SIZE = flags.DEFINE_string("size", "800x1088", "Height x width of the input, pixels.")
_ROIS = flags.DEFINE_integer("rois", 1000, "Proposals in the box head.", 0)
_MASK_ROIS = flags.DEFINE_integer("mask_rois", 100, "Detections in the mask head.", 0)
_CLASSES = flags.DEFINE_integer("classes", 80, "Object classes, the background not counted.", 1)
_LEVEL = flags.DEFINE_enum("lowest_level", "3", ["2", "3"], "Of NAS-FPN: p2..p6 or p3..p7.")
_CONVENTION = flags.DEFINE_enum(
    "convention", "macs", cost.CONVENTIONS, "True multiply-adds, or the paper's way of counting."
)
_JSON = flags.DEFINE_boolean("json", False, "One line of JSON.")


def main():
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", _SIZE.value)
    if not found:
        raise UserError("command line", "--size", _SIZE.value, "give HEIGHTxWIDTH, as 800x1088")
    canvas = tuple(int(side) for side in found.groups())
    parts = cost.parts(
        zoo.find(_ARCH.value),
        canvas,
        _DETECTOR.value,
        _NECK.value,
        _CLASSES.value,
        _ROIS.value,
        _MASK_ROIS.value,
        _CONVENTION.value,
        lowest_level=int(_LEVEL.value),
    )
    if not _JSON.value:
        for name, part in {**parts, "total": cost.total(parts)}.items():
            print(f"{name:12}{part.flops / 1e9:10.3f} G{part.params / 1e6:10.3f} M parameters")
        return
    by_part = {name: dataclasses.asdict(part) for name, part in parts.items()}
    row = {"arch": _ARCH.value, "detector": _DETECTOR.value, "neck": _NECK.value}
    row |= {"size": canvas, "convention": _CONVENTION.value}
    row |= {**dataclasses.asdict(cost.total(parts)), "parts": by_part}
    print(json.dumps(row))


if __name__ == "__main__":
    cli.run_script(main, ["arch"])
