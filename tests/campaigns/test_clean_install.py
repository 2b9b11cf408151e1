"""The wheel in a clean environment, and an export in one without this package."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, fresh_variables, randomised, tiny_options
from record_data import coco_folder

import crnas_jax
from crnas_jax.arch.staged import Arch
from crnas_jax.data.coco import category_entries
from crnas_jax.data.transforms import ImageSize
from crnas_jax.export.detector import save_detector
from crnas_jax.export.package import write_export
from crnas_jax.export.sources import Network
from crnas_jax.models.build import Detector

pytestmark = pytest.mark.campaign

EXAMPLE = ROOT / "docs" / "examples" / "downstream_detector.py"
# Every way in which an export is read, and the features of an image.
READERS = """
import json, pathlib, sys
import jax, numpy as np
import orbax.checkpoint
from flax import nnx, traverse_util
from flax.training import checkpoints
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file
folder = pathlib.Path(sys.argv[1]).absolute()
trees = [
    ocp.load(folder / "variables"),
    orbax.checkpoint.StandardCheckpointer().restore(folder / "variables"),
    checkpoints.restore_checkpoint(folder / "variables", None),
    traverse_util.unflatten_dict(load_file(folder / "weights.safetensors"), sep="."),
]
for tree in trees[1:]:
    jax.tree.map(np.testing.assert_array_equal, tree, trees[0])
variables = {name: trees[0][name]["backbone"] for name in ("params", "batch_stats")}
if sys.argv[2] == "crnas_jax":
    import crnas_jax
    module, variables = crnas_jax.load_backbone(folder)
    assert len(crnas_jax.load_detector(folder).class_names) == 2
else:
    sys.path.insert(0, str(folder))
    from backbone import Backbone
    module = Backbone.from_json((folder / "arch.json").read_text())
images = np.linspace(-1, 1, 64 * 96 * 3, dtype=np.float32).reshape(1, 64, 96, 3)
features = jax.jit(module.apply)(variables, images)
names = [name for name in sys.modules if name.split(".")[0] == "crnas_jax"]
print(json.dumps({
    "features": [np.asarray(y).tolist() for y in features],
    "devices": len(jax.devices()), "version": sys.version, "crnas_jax": bool(names),
}))
"""


def run(*command, folder=None):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder or pathlib.Path.home())}
    environment["JAX_PLATFORMS"] = "cpu"
    process = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process.stdout


def environment(folder, *requirements):
    """Return the interpreter of a new virtual environment."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    process = subprocess.run(list(map(str, [*pip, *requirements])), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return python


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_wheel_and_export_serve_clean_environments(tmp_path):
    arch = Arch("resnet_basic", (1, 2, 1, 1), (1, 1, 2, 1, 1), (8, 16, 16, 16))
    detector = Detector(arch, tiny_options(2))
    size, names = ImageSize(64, 96), ["cell", "dot"]
    # From eight devices, to be read on one.
    mesh = jax.make_mesh((8,), ("device",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    variables = jax.device_put(randomised(fresh_variables(detector)), everywhere)
    categories = category_entries([3, 17], names)
    save_detector(tmp_path / "run/returned", detector, variables, size, categories)
    export = tmp_path / "export"
    write_export(export, Network(arch, variables, detector, size, [3, 17], names, "returned"))
    data = coco_folder(tmp_path / "data")
    (data / "test.json").write_text((data / "val.json").read_text())

    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path]
    subprocess.run(list(map(str, [*build, ROOT])), check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    python = environment(tmp_path / "with", wheel)
    command = python.with_name("crnas-jax")
    work = tmp_path / "elsewhere"
    work.mkdir()
    assert run(command, "--version", folder=work).strip() == crnas_jax.__version__
    again = tmp_path / "again"
    run(command, "export", f"--workdir={tmp_path / 'run'}", f"--output={again}", folder=work)
    for name in ("arch.json", "weights.safetensors", "backbone.py"):
        assert (again / name).read_bytes() == (export / name).read_bytes()
    splits = [f"--split={name}={name}.json:images" for name in ("train", "val")]
    records = [f"--source={data}", f"--output={tmp_path / 'records'}", *splits]
    run(command, "prepare-data", "--dataset=coco", *records, folder=work)
    flags = [f"--config.data.{split}={split}" for split in ("train", "val")]
    flags += [f"--config.data.folder={tmp_path / 'records'}", "--config.data.name=tfds"]
    flags += ["--config.data.val=", "--config.data.test=val", "--workdir=none"]
    plan = run(command, "plan", "--config=configs/bccd.py", *flags, folder=work)
    assert "train 11 images" in plan

    module, weights = crnas_jax.load_backbone(export)
    images = np.linspace(-1, 1, 64 * 96 * 3, dtype=np.float32).reshape(1, 64, 96, 3)
    expected = jax.jit(module.apply)(weights, images)
    plain = environment(tmp_path / "without", "flax", "orbax-checkpoint", "safetensors", "pillow")
    for interpreter, package in ((python, "crnas_jax"), (plain, "none")):
        read = run(interpreter, "-c", READERS, export, package, folder=work)
        result = json.loads(read.splitlines()[-1])
        assert (result["crnas_jax"], result["devices"]) == (package == "crnas_jax", 1)
        for ours, theirs in zip(result["features"], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, abs(theirs).max()))
        flags = [f"--export={export}", f"--data={data}", f"--package={package}", "--steps=3"]
        output = run(interpreter, EXAMPLE, *flags, folder=work)
        assert "step 2/3 loss" in output
        assert "AP50 on test: " in output
