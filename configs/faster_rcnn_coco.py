"""Faster R-CNN with FPN on COCO: tables 1, 2 and 7, figure 5 and the stage-only networks.

    python scripts/train_detector.py --config=configs/faster_rcnn_coco.py:cr_resnet50,1x \
        --workdir=runs/faster_cr_resnet50
    python scripts/evaluate.py (the same)

To reach (AP, baseline -> stage-only -> full): MobileNetV2 32.2 -> 33.5 -> 33.9, ResNet-18 32.1 ->
33.4 -> 33.8, ResNet-50 36.4 -> 37.4 -> 38.3, ResNet-101 38.6 -> 39.5 -> 40.2, ResNeXt-50 37.9 ->
38.9, ResNeXt-101 40.6 -> 41.5. With 2x: ResNet-50 37.6 -> 39.3, ResNet-101 39.8 -> 41.2.
Expected: 3 GPU hours for ResNet-50 with 1x, 6 with 2x.
"""

from configs import paper


def get_config(arguments: str = ""):
    """Return the recipe of `NETWORK[,1x|2x]`: a name in the zoo or a .json; the schedule."""
    choices = (paper.networks("resnet50"), ("1x", "2x"))
    return paper.detection(*paper.arguments("configs/faster_rcnn_coco.py", arguments, *choices))
