"""Split COCO's training annotations for the search: 5,000 images for archval, the rest archtrain.

python scripts/split_coco.py --annotations=data/coco/annotations/instances_train2017.json

Writes archtrain.json and archval.json beside the file. Which images are drawn depends on their ids
alone (paper, section 4: 130K and 5K of trainval135K).
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("split-coco")
