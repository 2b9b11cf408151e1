"""Search of the dilations of a scale-permuted network's blocks, in a supernet that shares weights.

    python scripts/run_crnas.py --config=configs/operations_spinenet.py:quick --workdir=runs/quick
    ... --config=configs/operations_spinenet.py:laptop --config.data.folder=DATA --workdir=runs/mine
    ... --config=configs/operations_spinenet.py:gpu --config.data.folder=DATA --workdir=runs/gpu
    ... --config.baseline=runs/spinenet/architecture_search/result.json    a found network

CR-NAS's operation search without its stage search: such a network has no stages. A supernet over
the dilations is trained, searched greedily, the best codes and the network without dilation are
trained alone, and `val` decides which network is returned. Images, network and recipe are those of
`configs/search_spinenet.py` with the same name; any scale-permuted baseline will do.

    quick    generated images, eight blocks at four levels, two dilations, two CPU cores
    laptop   eight blocks at 192 x 256: any small folder in COCO's format
    gpu      fifteen blocks at 640 pixels, one GPU: a folder in COCO's format

`--config.supernet.tie=block` gives each block a dilation of its own, which takes more images to
tell apart.
"""

from configs import search_spinenet
from crnas_jax.errors import UserError

FILE = "configs/operations_spinenet.py"
SETTINGS = ("quick", "laptop", "gpu")


def get_config(setting: str = "laptop"):
    """Return one of `SETTINGS`."""
    if setting not in SETTINGS:
        raise UserError(FILE, "argument", f"{setting!r} is unknown", f"use one of {SETTINGS}")
    config = search_spinenet.get_config(setting)
    config.supernet.tie = "level"
    config.operation_train.update(config.detector_train.to_dict())
    config.operation_train.epochs = 2 * config.detector_train.epochs
    if setting == "quick":
        config.supernet.dilations = (1, 2)
    return config
