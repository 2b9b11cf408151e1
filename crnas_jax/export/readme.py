"""The README of an export: the lines that load it."""

_INPUT = """## Input

`images` are float32 [batch, height, width, 3]: RGB, 8 bits over 255, then (value - mean) / std of
each channel, mean {mean}, std {std}; zeros beside the image. Heights and widths are multiples of
{multiple}.{size} The features are {levels}.
{subnet}"""

_SUBNET = """
The network was cut out of a supernet, with the weights and statistics that it has there: fine-tune
it, or recalibrate its batch normalisation, before you measure it.
"""

_OURS = """# {title}

Written by crnas_jax {version}: `{network}` of a run. `arch.json` says what the network is;
`sha256sum -c SHA256SUMS` checks the files.

{input}
## With crnas_jax
{detector}
```python
import crnas_jax

module, variables = crnas_jax.load_backbone("THIS FOLDER")  # a Linen module and its weights
{names} = module.apply(variables, images)
```

A training starts from it with `--config.init_from.baseline=THIS_FOLDER` (or another network's
field, such as `searched`).

## With flax and Orbax alone

`backbone.py` needs jax and flax; copy it beside your code.

```python
import pathlib
from orbax.checkpoint import v1 as ocp
from backbone import Backbone

folder = pathlib.Path("THIS FOLDER").absolute()
module = Backbone.from_json((folder / "arch.json").read_text())
tree = ocp.load(folder / "variables")
variables = {{name: tree[name]["backbone"] for name in ("params", "batch_stats")}}
{names} = module.apply(variables, images)
features, moved = module.apply(variables, images, train=True, mutable=["batch_stats"])
```

The same arrays by other readers:

```python
import orbax.checkpoint
tree = orbax.checkpoint.StandardCheckpointer().restore(folder / "variables")

from flax.training import checkpoints
tree = checkpoints.restore_checkpoint(folder / "variables", None)

from flax import traverse_util
from safetensors.numpy import load_file
tree = traverse_util.unflatten_dict(load_file(folder / "weights.safetensors"), sep=".")
```

## With flax.nnx

```python
from flax import nnx

model = nnx.bridge.ToNNX(module)
for name, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(variables).items():
    setattr(model, name, nnx.data(value))
{names} = model(images)
features = model(images, train=True, mutable=["batch_stats"])  # moves the statistics in place
```
"""

_DETECTOR = """
```python
import crnas_jax

detector = crnas_jax.load_detector("THIS FOLDER")
predictions = detector.predict(["a.jpg"])
```
"""

_SCENIC = """# A ResNet with the names of google-research/scenic

Written by crnas_jax {version}: a backbone of depths {depths}, as scenic's
`scenic/projects/baselines/resnet.py` builds it. `sha256sum -c SHA256SUMS` checks the files.

{input}
## In scenic
{table}
```python
from flax.training import checkpoints
from scenic.projects.baselines import resnet

tree = checkpoints.restore_checkpoint("THIS FOLDER/variables", None)
model = resnet.ResNet(num_outputs=None, num_layers={num_layers}, num_filters={num_filters})
variables = {{"params": tree["params"], **tree["model_state"]}}
features = model.apply(variables, images, train=False)  # "stage_1" .. "stage_4": c2 .. c5
```

`init_from_pretrain_state` reads the same tree (`params`, `model_state`). It has no classifier.
"""

_TABLE = """
These depths are not in scenic's table of sizes; add a line below it:

```python
{line}
```
"""


def text(description: dict) -> str:
    """Return the README for the content of an `arch.json`."""
    fields = description["input"]
    size = ""
    if "min_size" in fields:
        size = (
            f" The detector was trained with shorter sides of {fields['min_size']} pixels, longer "
            f"ones of at most {fields['max_size']}."
        )
    levels = ", ".join(
        f"{level['name']} (stride {level['stride']}, {level['channels']} channels)"
        for level in description["levels"]
    )
    subnet = _SUBNET if description["is_subnet"] else ""
    inputs = _INPUT.format(**{**fields, "size": size, "levels": levels, "subnet": subnet})
    version = description["version"]
    if description["layout"] == "scenic":
        scenic = description["scenic"]
        table = _TABLE.format(line=scenic["line"]) if scenic["line"] else ""
        arch = description["arch"]
        return _SCENIC.format(
            version=version,
            input=inputs,
            table=table,
            depths=arch["depths"],
            num_layers=scenic["num_layers"],
            num_filters=arch["widths"][0],
        )
    is_detector = description["part"] == "detector"
    return _OURS.format(
        names=", ".join(level["name"] for level in description["levels"]),
        title="A detector" if is_detector else "A backbone",
        version=version,
        network=description["network"],
        input=inputs,
        detector=_DETECTOR if is_detector else "",
    )
