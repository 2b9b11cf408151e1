"""Print a detector's multiply-adds and parameters by part: a table, or with --json one JSON line.

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
from crnas_jax.arch.cost.detectors import DETECTORS, NECKS, detector_parts, total
from crnas_jax.arch.cost.layers import CONVENTIONS
from crnas_jax.errors import UserError

_ARCH = flags.DEFINE_string(
    "arch", None, "Name in the zoo (resnet50, cr_resnet50, ...), or a .json with an architecture."
)
_DETECTOR = flags.DEFINE_enum("detector", "faster_rcnn", DETECTORS, "Kind of detector.")
_NECK = flags.DEFINE_enum("neck", "fpn", NECKS, "Kind of neck.")
_SIZE = flags.DEFINE_string("size", "800x1088", "Height x width of the input in pixels.")
_ROIS = flags.DEFINE_integer("rois", 1000, "Number of proposals in the box head.", 0)
_MASK_ROIS = flags.DEFINE_integer("mask_rois", 100, "Number of detections in the mask head.", 0)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", 80, "Number of object classes, without background.", 1
)
_LOWEST_LEVEL = flags.DEFINE_enum(
    "lowest_level", "3", ["2", "3"], "Finest level of NAS-FPN: 2 for p2..p6, 3 for p3..p7."
)
_CONVENTION = flags.DEFINE_enum(
    "convention", "macs", CONVENTIONS, "True multiply-adds, or the paper's way of counting."
)
_JSON = flags.DEFINE_boolean("json", False, "Print one line of JSON.")


def main():
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", _SIZE.value)
    if not match:
        raise UserError("command line", "--size", _SIZE.value, "give HEIGHTxWIDTH, as 800x1088")
    canvas = tuple(int(side) for side in match.groups())
    parts = detector_parts(
        zoo.find(_ARCH.value),
        canvas,
        _DETECTOR.value,
        _NECK.value,
        _NUM_CLASSES.value,
        _ROIS.value,
        _MASK_ROIS.value,
        _CONVENTION.value,
        lowest_level=int(_LOWEST_LEVEL.value),
    )
    if not _JSON.value:
        for name, part in {**parts, "total": total(parts)}.items():
            print(f"{name:12}{part.flops / 1e9:10.3f} G{part.params / 1e6:10.3f} M parameters")
        return
    by_part = {name: dataclasses.asdict(part) for name, part in parts.items()}
    row = {"arch": _ARCH.value, "detector": _DETECTOR.value, "neck": _NECK.value}
    row |= {"size": canvas, "convention": _CONVENTION.value}
    row |= {**dataclasses.asdict(total(parts)), "parts": by_part}
    print(json.dumps(row))


if __name__ == "__main__":
    cli.run_script(main, ["arch"])
