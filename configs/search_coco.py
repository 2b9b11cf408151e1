"""The search of the paper on COCO: supernets on ImageNet and archtrain, both searches on archval.

    python scripts/split_coco.py --annotations=data/coco/annotations/instances_train2017.json
    python scripts/pretrain.py --config=configs/search_coco.py:resnet50 --workdir=runs/search \
        --network=stage_supernet
    python scripts/train_supernet.py (the same)
    python scripts/search_stage.py (the same)
    python scripts/pretrain.py ... --network=operation_supernet
    python scripts/train_supernet.py ... --level=operation
    python scripts/search_operations.py ...

Every later step runs what it needs of the earlier ones, so the last line does everything. What it
finds is trained by `configs/imagenet.py:runs/search/operation_search/result.json` in the folder
`runs/search/operation_search/imagenet_result` and then, for example, by
`configs/faster_rcnn_coco.py:runs/search/operation_search/result.json`.
To reach: [1, 3, 5, 7] and its operations for ResNet-50 (see crnas_jax/zoo.py for the others).
Expected for ResNet-50: 4 GPU hours on ImageNet and 5 on COCO for each supernet; one for the stage
search of 153 allocations, one for the operation search of 138 partial codes.
"""

from configs import base, paper


def get_config(arguments: str = ""):
    """Return the search of `NETWORK`, the baseline: its cost in blocks is the budget."""
    file, choices = "configs/search_coco.py", paper.networks("resnet50")
    (network,) = paper.arguments(file, arguments, choices)
    config = base.get_config()
    paper.as_published(config)
    config.network, config.baseline = "searched", network
    config.precision = "bfloat16"
    annotations = "annotations/{}.json"
    config.data.train, config.data.train_images = annotations.format("archtrain"), "train2017"
    config.data.val, config.data.val_images = annotations.format("archval"), "train2017"
    config.data.test = annotations.format("instances_val2017")
    config.data.test_images = "val2017"
    config.pretrain.networks = ("stage_supernet", "operation_supernet", "baseline", "searched")
    paper.recipe(config.stage_train, "2x")
    paper.recipe(config.operation_train, "2x")
    return config
