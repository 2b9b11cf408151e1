"""ImageNet training of one network, the start of every detector of the paper.

    python scripts/pretrain.py --config=configs/imagenet.py:cr_resnet50 \
        --workdir=runs/imagenet_cr_resnet50 --network=baseline

The detectors' recipes look for the weights in `runs/imagenet_NETWORK`; for a network in a file
`FOLDER/NAME.json` in `FOLDER/imagenet_NAME`, so give that as --workdir. Weights that torchvision
has are had in a minute with `scripts/convert_torchvision.py` instead. To reach (figure 6, top-1):
76.5 at ResNet-50's FLOPs, 77.3 at ResNet-101's. The paper gives no schedule for the found
networks: 150 epochs, the supernets', is our reading, 100 the short form.
Expected: 7 GPU hours for ResNet-50.
"""

from configs import base, paper


def get_config(arguments: str = ""):
    """Return the recipe of `NETWORK[,150|100]`: a name in the zoo or a .json; the epochs."""
    choices = (paper.networks("resnet50"), ("150", "100"))
    network, epochs = paper.arguments("configs/imagenet.py", arguments, *choices)
    config = base.get_config()
    config.network, config.baseline = "baseline", network
    config.precision = "bfloat16"
    config.data.name = "none"
    config.pretrain.networks = ("baseline",)
    config.pretrain.epochs = float(epochs)
    return config
