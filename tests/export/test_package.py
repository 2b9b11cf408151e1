"""Exports: what other programs read is what the network computes; damage is refused."""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx, traverse_util
from flax.training import checkpoints
from helpers import (
    change_a_byte,
    fresh_variables,
    randomised,
    tiny_batch,
    tiny_options,
    tiny_spinenet,
)
from orbax.checkpoint import v1 as ocp
from rounding import FACTOR, nudged
from safetensors.numpy import load_file

import crnas_jax
from crnas_jax import cli
from crnas_jax.arch.staged import Arch
from crnas_jax.data.coco import category_entries
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.export.detector import describe, load_detector, save_detector
from crnas_jax.export.package import write_export
from crnas_jax.export.sources import Network, find_network
from crnas_jax.export.weights import initialiser, save_weights
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.heads.box_head import CASCADE_STAGES
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.layers import BN_RUNNING, Normalization
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.models.supernet.banks import SupernetSpec

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

SIZE = ImageSize(64, 96, 32)
FAMILIES = {
    "resnet_basic": Arch("resnet_basic", (1, 2, 1, 1), (1, 1, 2, 1, 3), (4, 4, 8, 8)),
    "resnet_bottleneck": Arch("resnet_bottleneck", (1, 1, 2, 1), (1, 2, 1, 3, 1), (2, 4, 4, 8)),
    "resnext_32x4d": Arch("resnext_32x4d", (1, 1, 1, 1), (1, 2, 1, 1), (16, 16, 16, 16)),
    "mobilenet_v2": Arch("mobilenet_v2", (1, 1, 1, 1, 1), (1, 1, 2, 1, 1, 3, 1), (4,) * 7),
    "spinenet": dataclasses.replace(tiny_spinenet(num_levels=3), dilations=(2, 3, 1)),
    "spinenet_mobile": tiny_spinenet("spinenet_mobile", num_levels=3),
}
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.standard_normal((2, 64, 96, 3)), jnp.float32)
CATEGORIES = category_entries([3, 7, 90], ["cell", "dot", "disc"])


def network(arch, **options):
    options = dataclasses.replace(tiny_options(), **options)
    detector = Detector(arch, RetinaNetOptions(3) if arch.has_pyramid else options)
    variables = jax.device_put(randomised(fresh_variables(detector)))
    return Network(arch, variables, detector, SIZE, [3, 7, 90], ["cell", "dot", "disc"])


def own_features(exported, images=IMAGES):
    """Return the features of the detector's own backbone."""
    module = exported.detector.backbone.module
    variables = {name: tree["backbone"] for name, tree in exported.variables.items()}
    norm = Normalization(BN_RUNNING, jnp.ones(len(images)))
    return module.apply(variables, images, None, norm)


def loaded(folder):
    """Return module and variables; in tests, modules check that they are given JAX's arrays."""
    module, variables = crnas_jax.load_backbone(folder)
    return module, jax.device_put(variables)


def standalone(folder):
    """Return the module of the export's own `backbone.py`, as another program loads it."""
    spec = importlib.util.spec_from_file_location("backbone", folder / "backbone.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code.Backbone.from_json((folder / "arch.json").read_text())


def assert_close(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        scale = max(float(abs(theirs).max()), 1.0)  # small sums of terms around 1 round like 1
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale, rtol=0)


def readers(folder):
    """Return the tree as every reader gives it."""
    variables = (folder / "variables").absolute()
    return {
        "orbax v1": ocp.load(variables),
        "orbax v0": orbax.checkpoint.StandardCheckpointer().restore(variables),
        "flax": checkpoints.restore_checkpoint(variables, None),
        "safetensors": traverse_util.unflatten_dict(
            load_file(folder / "weights.safetensors"), sep="."
        ),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_all_readers_give_the_networks_outputs(tmp_path, family):
    exported = network(FAMILIES[family])
    folder = tmp_path / "export"
    write_export(folder, exported)
    for tree in readers(folder).values():
        jax.tree.map(np.testing.assert_array_equal, tree, exported.variables)
    module, variables = loaded(folder)
    alone = standalone(folder)
    model = nnx.bridge.ToNNX(module)
    for name, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(variables).items():
        setattr(model, name, nnx.data(value))

    def train(module, images, variables):
        outputs, moved = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return [*outputs, *jax.tree.leaves(moved)]

    @jax.jit
    def run(images, variables):
        outputs = [module.apply(variables, images), alone.apply(variables, images), model(images)]
        return (
            own_features(exported, images),
            outputs,
            train(module, images, variables),
            train(alone, images, variables),
        )

    expected, others, moved, moved_alone = run(IMAGES, variables)
    for outputs in others:
        assert_close(outputs, expected)
    # Where maps have few cells, batch statistics amplify rounding.
    nudge = jax.device_put(nudged(variables, 0))
    amplified = [abs(a - b).max() for a, b in zip(run(IMAGES, nudge)[2], moved, strict=True)]
    for ours, theirs, rounding in zip(moved_alone, moved, amplified, strict=True):
        bound = 1e-5 * max(float(abs(theirs).max()), 1.0) + FACTOR * rounding
        np.testing.assert_allclose(ours, theirs, atol=bound, rtol=0)
    shapes = jax.eval_shape(alone.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert isinstance(hash(alone), int)  # for static arguments
    description = json.loads((folder / "arch.json").read_text())
    levels = [(level["stride"], level["channels"]) for level in description["levels"]]
    assert levels == [(64 // y.shape[1], y.shape[-1]) for y in expected]
    assert description["class_names"] == ["cell", "dot", "disc"]


KINDS = {
    "faster_rcnn": {},
    "mask_rcnn": {"mask": MaskHeadOptions(8, 1)},
    "cascade_rcnn": {
        "box": dataclasses.replace(tiny_options().box, stages=CASCADE_STAGES, class_agnostic=True)
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_detector_detects_what_it_detected(tmp_path, kind):
    exported = network(FAMILIES["resnet_basic"], **KINDS[kind])
    write_export(tmp_path / "export", exported)
    predictor = load_detector(tmp_path / "export")
    assert (predictor.detector, predictor.size) == (exported.detector, SIZE)
    assert predictor.category_ids == [3, 7, 90]
    batch = jax.device_put(tiny_batch())
    run = jax.jit(Detector.apply, static_argnums=0)  # one program: the detectors are equal
    own = run(exported.detector, exported.variables, batch, None)
    assert own["valid"].any()
    read = run(predictor.detector, predictor.variables, batch, None)
    jax.tree.map(np.testing.assert_array_equal, read, own)


SPECS = {
    "stage_supernet": SupernetSpec(
        "resnet_basic", (4, 4, 8, 8), ((1, 2), (1, 3), (1,), (1, 2)), stage_sharing="prefix"
    ),
    "operation_supernet": SupernetSpec(
        "resnet_basic", (4, 4, 8, 8), ((1,), (2,), (1,), (1,)), (1, 2, 3), tie="stage"
    ),
}


@pytest.mark.parametrize(
    ("name", "flags", "depths", "dilations"),
    [
        ("stage_supernet", ["--depths=2,1,1,2"], (2, 1, 1, 2), (1,) * 6),
        ("stage_supernet", ["--rank=2"], (1, 3, 1, 1), (1,) * 6),
        ("operation_supernet", ["--dilations=1,3,3,2,1"], (1, 2, 1, 1), (1, 3, 3, 2, 1)),
        ("operation_supernet", ["--rank=1"], (1, 2, 1, 1), (1, 2, 2, 3, 1)),
    ],
)
def test_a_subnet_has_the_supernets_weights(tmp_path, name, flags, depths, dilations):
    spec = SPECS[name]
    supernet = Detector(spec, tiny_options())
    variables = jax.device_put(randomised(fresh_variables(supernet)))
    description = describe(supernet, SIZE, CATEGORIES)
    save_weights(tmp_path / "run" / name, supernet, variables, description)
    ranking = {
        "stage": [{"code": [1, 1, 1, 1], "score": 0.5}, {"code": [1, 3, 1, 1], "score": 0.4}],
        "operation": [{"code": [0, 1, 2, 0], "score": 0.5}],
    }
    for level, rows in ranking.items():
        (tmp_path / "run" / f"{level}_search").mkdir()
        file = tmp_path / "run" / f"{level}_search" / "result.json"
        file.write_text(json.dumps({"ranking": rows}))
    flags = [*flags, f"--network={name}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["export", *flags, f"--output={tmp_path / 'export'}"]) == 0
    predictor = load_detector(tmp_path / "export")
    subnet = predictor.detector
    assert (subnet.spec.depths, subnet.spec.dilations) == (depths, dilations)
    operations = [spec.dilations.index(d) for d in dilations] if len(spec.dilations) > 1 else None
    choice = spec.choice(depths, operations)
    extracted = supernet.extract(variables, choice, depths)
    jax.tree.map(np.testing.assert_array_equal, predictor.variables, extracted)
    if "--rank" in flags[0]:
        return
    module, weights = loaded(tmp_path / "export")
    other, norm = standalone(tmp_path / "export"), Normalization(BN_RUNNING, jnp.ones(2))
    path = {name: tree["backbone"] for name, tree in supernet.path(variables, choice).items()}

    @jax.jit
    def run(images):
        own = supernet.backbone.module.apply(path, images, choice, norm)
        return own, module.apply(weights, images), other.apply(weights, images)

    own, ours, alone = run(IMAGES)
    assert_close(ours, own)
    assert_close(alone, own)


def test_a_backbone_alone_starts_a_training_and_another_network(tmp_path, capsys):
    exported = network(FAMILIES["resnet_basic"])
    run = tmp_path / "run"
    save_detector(run / "returned", exported.detector, exported.variables, SIZE, CATEGORIES)
    flags = [f"--workdir={run}", f"--output={tmp_path / 'export'}", "--part=backbone"]
    assert cli.main(["export", *flags]) == 0
    assert not (tmp_path / "export" / "detector.json").exists()
    capsys.readouterr()
    model = Detector(exported.arch, tiny_options(2))
    filled = initialiser(model, tmp_path / "export")(fresh_variables(model, 1))
    assert "backbone" not in capsys.readouterr().out.partition("not filled: ")[2]
    for name in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal,
            filled[name]["backbone"],
            exported.variables[name]["backbone"],
        )


def test_the_backbone_of_a_classifier_is_exported(tmp_path):
    arch = FAMILIES["resnet_bottleneck"]
    classifier = Classifier(arch, ClassifierOptions(5))
    variables = randomised(fresh_variables(classifier))
    save_weights(tmp_path / "run/baseline/pretrain", classifier, variables)
    flags = [f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'export'}"]
    assert cli.main(["export", *flags, "--network=baseline/pretrain"]) == 0
    _, weights = loaded(tmp_path / "export")
    own = {name: tree["backbone"] for name, tree in variables.items()}
    jax.tree.map(np.testing.assert_array_equal, weights, own)
    file = tmp_path / "run/baseline/pretrain/network.json"
    for content, message in (("[]", "arch: missing"), ('{"arch": {}}', "format: not 1")):
        file.write_text(content)
        with pytest.raises(UserError, match=f"network.json: {message}; train the network again"):
            find_network(tmp_path / "run", "baseline/pretrain")


class ScenicBlock(nn.Module):
    """scenic's bottleneck block, from the description of its parameters."""

    filters: int
    stride: int

    @nn.compact
    def __call__(self, x):
        def layer(x, features, size, stride, number, name="conv{}", norm="bn{}"):
            pad = ((size // 2, size // 2),) * 2
            x = nn.Conv(
                features, (size, size), stride, pad, use_bias=False, name=name.format(number)
            )(x)
            return nn.BatchNorm(True, momentum=0.9, epsilon=1e-5, name=norm.format(number))(x)

        shortcut = x
        if x.shape[-1] != 4 * self.filters or self.stride > 1:
            shortcut = layer(x, 4 * self.filters, 1, self.stride, "", "proj_conv", "proj_bn")
        y = nn.relu(layer(x, self.filters, 1, 1, 1))
        y = nn.relu(layer(y, self.filters, 3, self.stride, 2))
        return nn.relu(layer(y, 4 * self.filters, 1, 1, 3) + shortcut)


class ScenicResNet(nn.Module):
    """scenic's ResNet without a classifier; blocks are counted over all stages."""

    sizes: tuple[int, ...]
    num_filters: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(
            self.num_filters, (7, 7), 2, ((3, 3), (3, 3)), use_bias=False, name="stem_conv"
        )(x)
        x = nn.relu(nn.BatchNorm(True, momentum=0.9, epsilon=1e-5, name="init_bn")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        features, number = [], 0
        for stage, size in enumerate(self.sizes):
            for block in range(size):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"ResidualBlock_{number}"
                x = ScenicBlock(self.num_filters * 2**stage, stride, name=name)(x)
                number += 1
            features.append(x)
        return features


def test_scenics_names_are_scenics(tmp_path):
    exported = network(Arch("resnet_bottleneck", (1, 2, 3, 1), (), (2, 4, 8, 16)))
    write_export(tmp_path / "export", exported, "backbone", "scenic")
    tree = checkpoints.restore_checkpoint((tmp_path / "export" / "variables").absolute(), None)
    assert set(tree) == {"params", "model_state", "global_step", "rng"}
    variables = {"params": tree["params"], **tree["model_state"]}
    module = ScenicResNet((1, 2, 3, 1), 2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    run = jax.jit(lambda images: (module.apply(variables, images), own_features(exported, images)))
    assert_close(*run(IMAGES))
    text = (tmp_path / "export" / "README.md").read_text()
    assert "BLOCK_SIZE_OPTIONS[23] = ([1, 2, 3, 1], True)" in text
    with pytest.raises(UserError, match=r"'scenic' has other names; export it without --layout"):
        crnas_jax.load_backbone(tmp_path / "export")
    with pytest.raises(UserError, match="scenic: it has the backbone alone"):
        write_export(tmp_path / "detector", exported, "detector", "scenic")
    standard = network(Arch("resnet_bottleneck", (2, 2, 2, 2), (), (2, 4, 8, 16)))
    write_export(tmp_path / "standard", standard, "backbone", "scenic")
    text = (tmp_path / "standard" / "README.md").read_text()
    assert "num_layers=26" in text
    assert "BLOCK_SIZE_OPTIONS" not in text


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        ("resnet_basic", "bottleneck blocks"),
        ("resnet_bottleneck", "dilations"),
        ("resnext_32x4d", "bottleneck blocks"),
        ("mobilenet_v2", "bottleneck blocks"),
    ],
)
def test_scenic_has_no_such_network(tmp_path, family, problem):
    with pytest.raises(UserError, match=problem):
        write_export(tmp_path / "export", network(FAMILIES[family]), "backbone", "scenic")
    assert list(tmp_path.iterdir()) == []


def test_the_template_is_data_driven_and_alone():
    file = pathlib.Path(crnas_jax.__file__).parent / "models" / "standalone_backbone.py"
    lines = [line.strip() for line in file.read_text().splitlines()]
    code = lines[lines.index('"""', 1) + 1 :]
    imports = {line for line in code if line.startswith(("import ", "from "))}
    assert imports == {
        "import json",
        "import math",
        "from typing import Any",
        "import flax.linen as nn",
        "import jax.numpy as jnp",
        "from flax.core import FrozenDict",
    }
    package = pathlib.Path(crnas_jax.__file__).parent
    for path in package.rglob("*.py"):
        if path != file:
            assert "import standalone_backbone" not in path.read_text()


def _change_arch(folder, **fields):
    description = json.loads((folder / "arch.json").read_text())
    (folder / "arch.json").write_text(json.dumps({**description, **fields}))


def test_damaged_and_foreign_exports_are_refused(tmp_path):
    folder = tmp_path / "export"
    exported = network(FAMILIES["resnet_basic"])
    cases = {
        r"arch\.json: missing: it is no export; give a folder": lambda: (
            folder / "arch.json"
        ).unlink(),
        r"arch\.json: format: 2, this version reads 1": lambda: _change_arch(folder, format=2),
        r"arch\.json: json: ": lambda: (folder / "arch.json").write_text("{"),
        r"arch\.json: file: its content has changed": lambda: _change_arch(folder, arch={}),
        r"weights\.safetensors: file: missing": lambda: (folder / "weights.safetensors").unlink(),
        r"SHA256SUMS: file: does not load": lambda: (folder / "SHA256SUMS").unlink(),
        r"its content has changed; export it again": lambda: change_a_byte(folder / "variables"),
        r"it is not in the list": lambda: (folder / "SHA256SUMS").write_text(""),
    }
    for message, damage in cases.items():
        shutil.rmtree(folder, ignore_errors=True)
        write_export(folder, exported)
        damage()
        with pytest.raises(UserError, match=message):
            crnas_jax.load_backbone(folder)
    shutil.rmtree(folder)
    write_export(folder, exported)
    other = network(FAMILIES["resnet_bottleneck"])
    _change_arch(folder, arch=json.loads(other.arch.to_json()))
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((folder / "arch.json").read_bytes()).hexdigest()
    sums = [f"{digest}  arch.json" if line.endswith("  arch.json") else line for line in sums]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    with pytest.raises(UserError, match=r"variables: checkpoint: does not load: .* shape"):
        crnas_jax.load_backbone(folder)
    with pytest.raises(UserError, match="missing: it is no export"):
        crnas_jax.load_backbone(tmp_path / "none")
