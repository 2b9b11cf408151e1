"""Eight virtual CPU devices, checked shapes, and the real data where it is present."""

import importlib.metadata
import os
import pathlib
import sys

# The tests spend most of their time compiling. Level 0 halves that time, the old fusion emitters
# (jaxlib 0.12 removed them) save two fifths of the rest, and a program that is not split for
# parallel code generation another fourth; none changes semantics.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
    QUICK_COMPILATION += " --xla_cpu_parallel_codegen_split_count=1"
# The last of several equal flags counts: flags from the environment change how the tests compile,
# as in the campaigns, while scripts that the tests launch always compile quickly.
# Test processes inherit the flags of the process that starts them: the first one's are kept apart.
ENVIRONMENT_FLAGS = os.environ.setdefault("GIVEN_XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
os.environ["SCRIPT_XLA_FLAGS"] = f"{ENVIRONMENT_FLAGS} {QUICK_COMPILATION}"
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 {QUICK_COMPILATION} {ENVIRONMENT_FLAGS}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled this quickly, most programs take less than the second from which on they are stored.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Nobody reads the source locations in the programs.
jax.config.update("jax_traceback_in_locations_limit", 0)

# Annotated shapes and dtypes are checked at run time in every test, and arrays of different ranks
# do not broadcast in silence.
CHECKED = ("ops", "models", "training", "search")
jaxtyping.install_import_hook([f"crnas_jax.{name}" for name in CHECKED], "checker.check_types")
jax.config.update("jax_numpy_rank_promotion", "raise")

from crnas_jax.parallel.process import speed_up_compilation  # noqa: E402

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
speed_up_compilation()

# The slowest files come first, so that two processes finish at about the same time.
SLOWEST = (
    *("experiments/test_crnas", "training/test_step", "models/supernet/test_module"),
    *("training/test_loop", "models/test_rcnn", "interop/test_torchvision", "test_configs"),
    *(
        "search/supernet/test_evaluator",
        "arch/cost/test_detectors",
        "interop/test_convert_torchvision",
    ),
    *("models/test_transfer", "evaluation/test_predict", "search/supernet/test_scorer"),
)


def pytest_collection_modifyitems(items):
    rank = {ROOT / "tests" / f"{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Return the folder of real images beside the checkout; skip the test where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data with real images is absent")
    return folder
