"""Eight virtual CPU devices, checked shapes, shared tiny models, and the real data where it is."""

import importlib.metadata
import os
import pathlib
import sys

# Compiling is most of the tests' time. Level 0 halves it, and of the rest the old emitters of
# fusions (jaxlib 0.12 has them no more) save two fifths; neither changes semantics.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
# The last flag wins: flags given from outside change how the tests compile, as in the campaigns,
# but scripts that the tests launch always compile quickly.
GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["SCRIPT_XLA_FLAGS"] = f"{GIVEN} {QUICK_COMPILATION}"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_COMPILATION} {GIVEN}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Annotated shapes and dtypes are checked at run time in every test, and arrays of different ranks
# do not broadcast in silence.
CHECKED = ("ops", "models", "training", "search")
jaxtyping.install_import_hook([f"crnas_jax.{name}" for name in CHECKED], "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

from crnas_jax.cli import use_compilation_cache  # noqa: E402

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
use_compilation_cache()

# Files that take longest come first, so that two processes end together.
SLOWEST = (
    *("experiments/test_crnas", "training/test_step", "models/supernet/test_module"),
    *("training/test_loop", "models/test_rcnn", "interop/test_torchvision", "test_configs"),
    *("search/supernet/test_evaluator", "arch/cost/test_detectors", "interop/test_convert"),
    *("models/test_transfer", "evaluation/test_predict", "search/supernet/test_scorer"),
)


def pytest_collection_modifyitems(items):
    rank = {ROOT / "tests" / f"{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images beside the checkout; skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real images are not there: the folder ../shared/data is absent")
    return folder
