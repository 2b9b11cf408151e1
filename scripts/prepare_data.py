"""Write COCO, VOC, ImageNet, iNaturalist or data of your own as records with random access.

python scripts/prepare_data.py --dataset=coco --source=downloads --output=records/coco
python scripts/prepare_data.py --dataset=coco --source=data/mine --output=records/mine \
    --split=train=train.json:images --split=val=val.json:images --split=test=test.json:images
python scripts/prepare_data.py --dataset=tfrecord --source=~/tensorflow_datasets/coco/2017/1.1.0 \
    --output=records/coco

The same command goes on where it was interrupted. Read them with --config.data.name=tfds.
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("prepare-data")
