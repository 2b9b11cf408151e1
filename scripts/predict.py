"""Run a trained detector on photographs and write its detections as COCO json.

python scripts/predict.py --detector=runs/bccd/returned --images=photos --output=detections.json

Boxes are in the pixels of the image as a viewer shows it, EXIF rotation applied.
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("predict")
