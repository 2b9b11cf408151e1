"""Print a detector's multiply-adds and parameters by part: a table, or with --json one JSON line.

python scripts/flops.py --arch=cr_resnet50 --detector=faster_rcnn --size=800x1088 --rois=1000 --json
python scripts/flops.py --arch=resnet101 --detector=mask_rcnn --convention=thop2019   (the paper's)
python scripts/flops.py --arch=runs/mine/operation_search/result.json
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("flops")
