"""Faster R-CNN with FPN on PASCAL VOC: trained on trainval07+12, tested on test07.

    python scripts/train_detector.py --config=configs/faster_rcnn_voc.py:cr_resnet50 \
        --workdir=runs/voc_cr_resnet50
    python scripts/evaluate.py (the same)

To reach (AP50 on test07): ResNet-50 84.1 -> CR 85.1, ResNet-101 85.8 -> CR 86.5. `evaluate` prints
VOC07_AP50 (11 points) and VOC_AP50 (area); the paper does not say which it means.
Expected: half a GPU hour for ResNet-50.
"""

from configs import paper


def get_config(arguments: str = ""):
    """Return the recipe of `NETWORK`: a name in the zoo, or a .json with an architecture."""
    file, choices = "configs/faster_rcnn_voc.py", paper.networks("resnet50")
    (network,) = paper.arguments(file, arguments, choices)
    config = paper.detection(network, "18e")
    config.data.update(
        {
            "name": "voc",
            "folder": "data/VOCdevkit",
            "train": "VOC2007/trainval+VOC2012/trainval",
            "test": "VOC2007/test",
            "min_size": 600,
            "max_size": 1000,
        }
    )
    return config
