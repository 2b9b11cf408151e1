"""Print docs/model_zoo.md: the networks and experiments of the papers with their costs and AP.

python scripts/model_zoo.py > docs/model_zoo.md

The column for our AP is blank until it is measured; nothing is copied into it.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from configs import spinenet
from crnas_jax.arch import zoo
from crnas_jax.arch.cost.detectors import classifier_parts, detector_parts, total

CANVAS = (800, 1088)
NUM_CLASSES = 80


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
      title: title of the section.
      config: name of the config file, and the arguments that follow the network's name.
      detector: one of `arch.cost.detectors.DETECTORS`.
      columns: names of the metrics that the paper prints.
      rows: for each network the paper's FLOPs in G (None where it prints none) and its metrics.
      neck: one of `arch.cost.detectors.NECKS`.
      num_classes: number of object classes.
    """

    title: str
    config: tuple[str, str]
    detector: str
    columns: tuple[str, ...]
    rows: dict[str, tuple]
    neck: str = "fpn"
    num_classes: int = NUM_CLASSES


BOX = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TABLES = (
    Table(
        "Faster R-CNN, FPN, 1x (table 1)",
        ("faster_rcnn_coco", ",1x"),
        "faster_rcnn",
        BOX,
        {
            "mobilenet_v2": (121.1, 32.2, 54.0, 33.6, 18.1, 34.9, 42.1),
            "cr_mobilenet_v2": (121.4, 33.9, 56.2, 35.6, 19.7, 36.8, 44.8),
            "resnet18": (147.7, 32.1, 53.5, 33.7, 17.4, 34.6, 41.9),
            "cr_resnet18": (147.6, 33.8, 55.8, 35.4, 18.2, 36.2, 45.8),
            "resnet50": (192.5, 36.4, 58.6, 38.7, 21.8, 39.7, 47.2),
            "cr_resnet50": (192.7, 38.3, 61.1, 40.9, 21.8, 41.6, 50.7),
            "resnet101": (257.3, 38.6, 60.7, 41.7, 22.8, 42.8, 49.6),
            "cr_resnet101": (257.5, 40.2, 62.7, 43.0, 22.7, 43.9, 54.2),
        },
    ),
    Table(
        "Stage reallocation alone: Faster R-CNN, FPN, 1x",
        ("faster_rcnn_coco", ",1x"),
        "faster_rcnn",
        ("AP",),
        {
            "mobilenet_v2": (None, 32.2),
            "scr_mobilenet_v2": (None, 33.5),
            "resnet18": (None, 32.1),
            "scr_resnet18": (None, 33.4),
            "resnet50": (None, 36.4),
            "scr_resnet50": (None, 37.4),
            "resnet101": (None, 38.6),
            "scr_resnet101": (None, 39.5),
            "resnext50_32x4d": (None, 37.9),
            "scr_resnext50_32x4d": (None, 38.9),
            "resnext101_32x4d": (None, 40.6),
            "scr_resnext101_32x4d": (None, 41.5),
        },
    ),
    Table(
        "Mask R-CNN, FPN, 1x (table 3)",
        ("mask_rcnn_coco", ",1x"),
        "mask_rcnn",
        ("mask AP", "s", "m", "l", "box AP", "s", "m", "l"),
        {
            "mobilenet_v2": (189.5, 30.6, 15.3, 33.2, 42.2, 33.1, 18.8, 35.8, 43.3),
            "cr_mobilenet_v2": (189.8, 31.8, 16.3, 34.3, 44.1, 34.6, 19.9, 37.3, 45.7),
            "resnet50": (261.2, 33.9, 17.4, 37.3, 46.6, 37.6, 21.8, 41.2, 48.9),
            "cr_resnet50": (261.0, 35.2, 17.6, 38.5, 49.4, 39.1, 22.2, 42.3, 52.3),
            "resnet101": (325.9, 35.6, 18.6, 39.2, 49.5, 39.7, 23.4, 43.9, 51.7),
            "cr_resnet101": (325.8, 36.7, 19.4, 40.0, 52.0, 41.5, 24.2, 45.2, 55.7),
        },
    ),
    Table(
        "Faster R-CNN, FPN, 2x (table 7)",
        ("faster_rcnn_coco", ",2x"),
        "faster_rcnn",
        BOX,
        {
            "resnet50": (192.5, 37.6, 59.5, 40.6, 22.4, 40.8, 48.5),
            "cr_resnet50": (192.7, 39.3, 60.8, 42.1, 22.0, 42.4, 52.5),
            "resnet101": (257.3, 39.8, 61.5, 43.2, 23.2, 44.0, 51.4),
            "cr_resnet101": (257.5, 41.2, 62.5, 44.6, 23.7, 44.8, 54.6),
        },
    ),
    Table(
        "Cascade Mask R-CNN, FPN, 20 epochs (table 8)",
        ("cascade_mask_rcnn_coco", ",20e"),
        "cascade_mask_rcnn",
        BOX,
        {
            "resnet101": (None, 43.3, 61.5, 47.3, 24.7, 46.6, 57.6),
            "cr_resnet101": (None, 44.5, 62.6, 48.0, 25.6, 47.7, 60.2),
        },
    ),
    Table(
        "Faster R-CNN, NAS-FPN 7 @ 384 on p3..p7, 1x (table 9)",
        ("nas_fpn_coco", ",1x"),
        "faster_rcnn",
        BOX,
        {
            "resnet50": (None, 39.6, 60.4, 43.3, 22.8, 42.8, 51.5),
            "cr_resnet50": (None, 41.0, 61.2, 44.2, 22.7, 44.9, 54.2),
        },
        neck="nas_fpn",
    ),
    Table(
        "Faster R-CNN, FPN, PASCAL VOC, test07",
        ("faster_rcnn_voc", ""),
        "faster_rcnn",
        ("AP50",),
        {
            "resnet50": (None, 84.1),
            "cr_resnet50": (None, 85.1),
            "resnet101": (None, 85.8),
            "cr_resnet101": (None, 86.5),
        },
        num_classes=20,
    ),
)
# SpineNet's tables by protocol: title, and the published columns beside AP: test-dev AP, 50, 75, S,
# M, L with c; top-5 for classifiers (its release's MODEL_ZOO).
SPINENET = {
    "a": ("SpineNet, RetinaNet, protocol A (250 epochs)", {}),
    "b": ("SpineNet, RetinaNet, protocol B (350 epochs)", {}),
    "c": (
        "SpineNet, RetinaNet, protocol C (500 epochs; 190: 400)",
        {
            "spinenet49s": (41.5, 60.5, 44.6, 23.3, 45.0, 58.0),
            "spinenet49": (44.3, 63.8, 47.6, 25.9, 47.7, 61.1),
            "spinenet49_896": (46.7, 66.3, 50.6, 29.1, 50.1, 61.7),
            "spinenet96": (48.6, 68.4, 52.5, 32.0, 52.3, 62.0),
            "spinenet143": (50.7, 70.4, 54.9, 33.6, 53.9, 62.1),
            "spinenet190": (52.1, 71.8, 56.5, 35.4, 55.0, 63.6),
        },
    ),
    "mobile": ("Mobile SpineNet, RetinaNet (600 epochs)", {}),
    "imagenet": (
        "SpineNet on ImageNet, 224 pixels",
        {"spinenet49": (93.3,), "spinenet96": (94.0,), "spinenet143": (94.4,)},
    ),
    "imagenet_improved": (
        "SpineNet on ImageNet with stochastic depth, swish and label smoothing",
        {
            **{"spinenet49": (94.0,), "spinenet96": (94.6,), "spinenet143": (95.0,)},
            "spinenet190": (95.3,),
        },
    ),
    "inaturalist": (
        "SpineNet on iNaturalist 2017, 224 pixels",
        {"spinenet49": (81.9,), "spinenet96": (83.4,), "spinenet143": (84.8,)},
    ),
    "inaturalist_improved": (
        "SpineNet on iNaturalist 2017 with stochastic depth, swish and label smoothing",
        {
            **{"spinenet49": (85.1,), "spinenet96": (85.9,), "spinenet143": (87.1,)},
            "spinenet190": (87.4,),
        },
    ),
}
# Published multiply-adds of classifiers in G.
CLASSIFIERS = {"spinenet49": 3.5, "spinenet96": 5.7, "spinenet143": 9.1, "spinenet190": 19.1}
SPINENET_HEAD = """
# SpineNet

Scale-permuted backbones (arXiv 1912.05027), `configs/spinenet.py:PROTOCOL,NETWORK`. *GMACs* and *M*
are those of the whole detector at the size given (91 outputs an anchor), or of the classifier (1001
and 5089 outputs); beside them stands the published figure. The release does not build a 49S of the
published cost. AP on val2017 and top-1 are SpineNet's; the column for ours is blank until it is
measured. The first row's cost:

```
python scripts/flops.py --arch=spinenet49 --detector=retinanet --head=spinenet --size=640x640 \\
    --num_classes=91
```
"""
HEAD = """# Model zoo

Every network and experiment of the paper (CR-NAS, tables 1, 3, 7, 8 and 9, the stage-only networks
and PASCAL VOC). `scripts/model_zoo.py` prints this page.

*GMACs* are true multiply-adds of the whole detector at 800 x 1088 with 1000 proposals (100
detections in the mask heads). *thop* counts as the paper did (`crnas_jax/arch/cost/`); beside it
stands the figure that the paper prints. Its tables 1 and 7 print the figures of ResNet-50 and
CR-ResNet-50 in each other's place, and those of ResNet-101 and CR-ResNet-101 too. *M* are millions
of parameters, for {num_classes} classes (20 on VOC). AP is the paper's; the column for ours is
blank until it is measured. The config of a row is `configs/FILE.py:NETWORK` with the table's
arguments; the head of that file says how to launch it and what it takes.
"""


def _lines(table):
    file, arguments = table.config
    yield f"\n## {table.title}\n"
    yield f"`configs/{file}.py:NETWORK{arguments}`\n"
    head = ("network", "depths", "GMACs", "thop", "paper", "M", *table.columns, "our AP")
    yield _row(head)
    yield _row(["---"] * len(head))
    for name, (printed, *values) in table.rows.items():
        arch = zoo.get(name)
        shared = {"detector": table.detector, "neck": table.neck, "num_classes": table.num_classes}
        macs = total(detector_parts(arch, CANVAS, **shared))
        thop = total(detector_parts(arch, CANVAS, convention="thop2019", **shared))
        depths = " ".join(map(str, arch.depths))
        figures = (f"{macs.flops / 1e9:.1f}", f"{thop.flops / 1e9:.1f}", printed or "")
        yield _row((f"`{name}`", depths, *figures, f"{macs.params / 1e6:.2f}", *values, ""))


def _spinenet_lines(protocol):
    title, others = SPINENET[protocol]
    is_classifier = protocol.startswith(("imagenet", "inaturalist"))
    columns = ("top-1", "top-5") if is_classifier else ("AP",)
    if protocol == "c":
        columns = ("AP", *(f"test-dev {name}" for name in BOX))
    yield f"\n## {title}\n"
    yield f"`configs/spinenet.py:{protocol},NETWORK`\n"
    head = ("network", "size", "GMACs", "published", "M", *columns, "our " + columns[0])
    yield _row(head)
    yield _row(["---"] * len(head))
    targets = spinenet.TARGETS[protocol]
    for name in dict.fromkeys((*targets, *others)):
        arch_name, side, _, published = spinenet.NETWORKS[name]
        arch = zoo.get(arch_name)
        if is_classifier:
            side, published = 224, CLASSIFIERS[name]
            num_classes = 1001 if protocol.startswith("imagenet") else 5089
            cost = total(classifier_parts(arch, (side, side), num_classes))
        else:
            convolutions, separable = zoo.published_head(arch, "spinenet")
            options = {"head_convolutions": convolutions, "separable": separable}
            shared = {"num_classes": 91, "head": "spinenet", **options}
            cost = total(detector_parts(arch, (side, side), "retinanet", **shared))
        values = [targets.get(name, ""), *others.get(name, [""] * (len(columns) - 1))]
        figures = (f"{cost.flops / 1e9:.1f}", published or "", f"{cost.params / 1e6:.2f}")
        yield _row((f"`{name}`", side, *figures, *values, ""))


def _row(cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def page() -> str:
    """Return the content of docs/model_zoo.md."""
    lines = [line for table in TABLES for line in _lines(table)]
    spinenet_lines = [line for protocol in SPINENET for line in _spinenet_lines(protocol)]
    parts = [HEAD.format(num_classes=NUM_CLASSES), *lines, SPINENET_HEAD.rstrip(), *spinenet_lines]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
