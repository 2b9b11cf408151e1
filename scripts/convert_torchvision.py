"""Convert torchvision's weights to an Orbax checkpoint to start from, detectors also to predict.

python scripts/convert_torchvision.py --model=resnet50 --weights=resnet50-0676ba61.pth \
    --output=weights/resnet50
python scripts/run_crnas.py ... --config.init_from.baseline=weights/resnet50

The file is a .safetensors or .pth; nothing in it is executed. A standard network's weights start a
CR- network (blocks by their place) and a full-width supernet (every branch, every dilation).
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("convert")
