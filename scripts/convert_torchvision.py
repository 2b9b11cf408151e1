"""Convert torchvision's weights to an Orbax checkpoint to start from, detectors also to predict.

python scripts/convert_torchvision.py --model=resnet50 --weights=resnet50-0676ba61.pth \
    --output=weights/resnet50
python scripts/run_crnas.py ... --config.init_from.baseline=weights/resnet50

The file is a .safetensors or .pth; nothing in it is executed. A standard network's weights start a
CR- network (blocks by their place) and a full-width supernet (every branch, every dilation).
"""

import pathlib

from absl import flags

from crnas_jax import cli
from crnas_jax.checkpoint import save_variables
from crnas_jax.data.coco import category_entries
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.export.detector import save_detector
from crnas_jax.export.weights import VARIABLES
from crnas_jax.interop import torchvision
from crnas_jax.interop.state_dict import read_state_dict

_MODEL = flags.DEFINE_enum(
    "model",
    None,
    torchvision.CLASSIFIERS + torchvision.DETECTORS,
    "Model that the weights belong to.",
)
_WEIGHTS = flags.DEFINE_string("weights", None, ".safetensors or .pth file.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must not exist yet.")
_EPSILON = flags.DEFINE_float(
    "epsilon",
    None,
    "Epsilon of the batch normalisation; when not given, 0 for the published detectors (files with "
    "_coco in the name) and 1e-5 otherwise, as in torchvision.",
    0.0,
)


def main():
    output, weights = pathlib.Path(_OUTPUT.value), pathlib.Path(_WEIGHTS.value)
    if not _OUTPUT.value or output.exists():
        problem = "it exists already" if _OUTPUT.value else "empty"
        raise UserError(_OUTPUT.value, "--output", problem, "name a new folder")
    epsilon = _EPSILON.value
    if epsilon is None:
        published = _MODEL.value in torchvision.DETECTORS and "_coco" in weights.name
        epsilon = 0.0 if published else 1e-5
    state = read_state_dict(weights)
    model, variables, ignored = torchvision.convert(state, _MODEL.value, epsilon)
    if _MODEL.value in torchvision.DETECTORS:
        categories = category_entries(*torchvision.categories(model.options.num_classes))
        save_detector(output, model, variables, ImageSize(800, 1333), categories)
    else:
        save_variables(output / VARIABLES, variables)
    num_used = len(state) - len(ignored)
    print(f"{num_used} tensors of {weights} written to {output}, epsilon {epsilon:g}")
    print(f"{len(ignored)} not needed: {', '.join(sorted({n.split('.')[-1] for n in ignored}))}")


if __name__ == "__main__":
    cli.run_script(main, ["model", "weights", "output"])
