"""Faster R-CNN with NAS-FPN (7 stacks of 384 channels) on COCO: table 9.

    python scripts/train_detector.py --config=configs/nas_fpn_coco.py:cr_resnet50 \
        --workdir=runs/nas_fpn_cr_resnet50
    python scripts/evaluate.py (the same)

To reach (AP): ResNet-50 39.6 -> CR 41.0. The paper does not say which levels the neck has: p3..p7,
its native ones, is our reading; `--config.detector.lowest_level=2` is the other.
Expected: 6 GPU hours for ResNet-50.
"""

from configs import paper


def get_config(arguments: str = ""):
    """Return the recipe of `NETWORK[,1x|2x]`: a name in the zoo or a .json; the schedule."""
    choices = (paper.networks("resnet50"), ("1x", "2x"))
    config = paper.detection(*paper.arguments("configs/nas_fpn_coco.py", arguments, *choices))
    config.detector.neck = "nas_fpn"
    config.detector.pyramid_channels = 384
    return config
