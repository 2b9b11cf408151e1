"""Eight virtual CPU devices, checked shapes, shared tiny models, and the real data where it is."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

# Compiling is most of the tests' time. Level 0 halves it, and of the rest the old emitters of
# fusions (jaxlib 0.12 has them no more) save two fifths; neither changes semantics.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
# What is given from outside, as for the campaigns, wins.
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_COMPILATION} {_GIVEN}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Annotated shapes and dtypes are checked at run time in every test.
jaxtyping.install_import_hook("crnas_jax.ops", "beartype.beartype")

from crnas_jax.command import use_compilation_cache  # noqa: E402

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
use_compilation_cache()

# Of scripts that are launched: as the tests compile, but on one device.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": QUICK_COMPILATION}

from crnas_jax.models.detectors import DetectorOptions  # noqa: E402
from crnas_jax.models.roi_heads import BoxHeadOptions  # noqa: E402
from crnas_jax.models.rpn import RPNOptions  # noqa: E402


def tiny_options(classes: int = 3) -> DetectorOptions:
    """Neck and heads small enough to compile in seconds."""
    rpn = RPNOptions(
        (8.0, 16.0, 32.0, 64.0, 128.0), samples=32, pre_nms=(60, 40), post_nms=(40, 20)
    )
    box = BoxHeadOptions(
        head_channels=32, samples=16, canonical_size=56.0, nms_candidates=40, detections=10
    )
    return DetectorOptions(classes, 16, rpn, box)


def tiny_batch(number: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> dict:
    """A device batch with two objects an image, the second image's first one a crowd."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 24, (number, 2, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 36, (number, 2, 2))], -1)
    crowd = np.zeros((number, 2), bool)
    crowd[1:2, 0] = True
    return {
        "image": rng.integers(0, 255, (number, height, width, 3)).astype(np.uint8),
        "image_size": np.full((number, 2), (height, width - 4), np.int32),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(1, 4, (number, 2)).astype(np.int32),
        "valid": np.ones((number, 2), bool),
        "crowd": crowd,
        "weight": np.ones(number, np.float32),
        "image_key": np.arange(number, dtype=np.uint32),
    }


def randomised(variables, seed: int = 0, scale: float = 0.1):
    """Variables with non-trivial biases and statistics."""
    rng = np.random.default_rng(seed)

    def noise(leaf):
        return leaf + scale * rng.standard_normal(leaf.shape).astype(leaf.dtype)

    return {
        "params": jax.tree.map(noise, variables["params"]),
        "batch_stats": jax.tree.map(lambda leaf: abs(noise(leaf)) + 0.5, variables["batch_stats"]),
    }


def run_commands(commands: list[list[str]]) -> list[dict]:
    """Outcomes {"status", "stdout", "stderr"} of scripts with arguments, on one device."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "forked.py")],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    return json.loads(run.stdout)


def greatest_difference(tree, other) -> float:
    """Largest absolute difference over all leaves; the trees must have one form."""
    return max(
        float(abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(*map(jax.tree.leaves, _same_form(tree, other)), strict=True)
    )


def _same_form(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    return tree, other


# Files that take longest come first, so that two processes end together.
SLOWEST = (
    *("test_pipeline.py", "test_step.py", "test_supernet.py", "test_training.py"),
    *("test_detectors.py", "test_torchvision.py", "test_recipes.py", "test_evaluator.py"),
    *("test_cost.py", "test_convert.py", "test_transfer.py", "test_predict.py", "test_scoring.py"),
)


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images beside the checkout; skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real images are not there: the folder ../shared/data is absent")
    return folder
