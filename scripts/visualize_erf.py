"""Draw what a network's pyramid levels see: effective receptive fields and their widths.

python scripts/visualize_erf.py --arch=resnet50 --arch=scr_resnet50 --output=fields
python scripts/visualize_erf.py --detector=runs/mine/returned --images=photos --output=fields
"""

from crnas_jax import cli

if __name__ == "__main__":
    cli.script("visualize-erf")
