"""Mask R-CNN with FPN on COCO: table 3.

    python scripts/train_detector.py --config=configs/mask_rcnn_coco.py:cr_resnet50,1x \
        --workdir=runs/mask_cr_resnet50
    python scripts/evaluate.py (the same)

To reach (mask AP / box AP, baseline -> CR): MobileNetV2 30.6 / 33.1 -> 31.8 / 34.6, ResNet-50
33.9 / 37.6 -> 35.2 / 39.1, ResNet-101 35.6 / 39.7 -> 36.7 / 41.5.
Expected: 4 GPU hours for ResNet-50.
"""

from configs import paper


def get_config(arguments: str = ""):
    """Return the recipe of `NETWORK[,1x|2x]`: a name in the zoo or a .json; the schedule."""
    choices = (paper.networks("resnet50"), ("1x", "2x"))
    config = paper.detection(*paper.arguments("configs/mask_rcnn_coco.py", arguments, *choices))
    config.detector.kind = "mask_rcnn"
    return config
