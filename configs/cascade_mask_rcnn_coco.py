"""Cascade Mask R-CNN with FPN on COCO, 20 epochs: table 8.

    python scripts/train_detector.py --config=configs/cascade_mask_rcnn_coco.py:cr_resnet101 \
        --workdir=runs/cascade_cr_resnet101
    python scripts/evaluate.py (the same)

To reach (box AP): ResNet-101 43.3 -> CR 44.5.
Expected: 10 GPU hours for ResNet-101.
"""

from configs import paper


def get_config(arguments: str = ""):
    """Return the recipe of `NETWORK[,20e|1x|2x]`: a name in the zoo or a .json; the schedule."""
    file = "configs/cascade_mask_rcnn_coco.py"
    choices = (paper.networks("resnet101"), ("20e", "1x", "2x"))
    config = paper.detection(*paper.arguments(file, arguments, *choices))
    config.detector.kind = "cascade_mask_rcnn"
    return config
