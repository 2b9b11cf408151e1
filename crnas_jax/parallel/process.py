"""What concerns a whole process: signals, logs of libraries, the cache of compiled programs."""

import contextlib
import functools
import gc
import logging
import os
import pathlib
import platform
import sys
import warnings

from crnas_jax.runtime import interruption
from crnas_jax.runtime.files import digest

# Room of compiled programs that the workers of a search leave.
CACHE_BYTES = 20e9


def prepare(saves_on_stop: bool = False) -> None:
    """Set what concerns a whole process.

    Args:
      saves_on_stop: whether it saves and ends when asked to stop; otherwise it ends at once.
    """
    if saves_on_stop:
        interruption.listen()
    # Orbax has its say about every save and load; what matters is in our errors.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # JAX goes on without its cache where the disk is full.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    speed_up_compilation()


def speed_up_compilation() -> None:
    """Store compiled programs, in JAX_COMPILATION_CACHE_DIR or the user's cache folder.

    Each kind of machine has a folder of its own in it, also where it is shared: programs for a CPU
    have instructions that another may lack.

    Tracing fills the heap with objects that live long: looking at them all as often as Python does
    by default takes a tenth of the time before the first step.
    """
    gc.set_threshold(50_000, 10, 10)
    folder = pathlib.Path(
        os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or pathlib.Path.home() / ".cache" / "crnas_jax" / "xla"
    )
    if folder.name != _machine():  # not what the process that started this one has set
        folder /= _machine()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    if "jax" in sys.modules:  # it has read its environment
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))


def trim_cache(most_bytes: float = CACHE_BYTES) -> None:
    """Remove the compiled programs that were used longest ago where all take too much room.

    Each candidate of an architecture search has programs of its own. A process that misses one
    compiles it again.
    """
    entries = []
    for path in pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", "")).glob("*-cache"):
        with contextlib.suppress(OSError):  # another process removes some, too
            about = path.stat()
            entries.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= most_bytes:
            return
        with contextlib.suppress(OSError):  # another user's
            path.unlink(missing_ok=True)
            total -= size


@functools.cache
def _machine():
    """Return a name for this kind of machine."""
    about = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        about += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return f"machine-{digest(*about)}"
