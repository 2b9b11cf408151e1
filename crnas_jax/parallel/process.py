"""What concerns a whole process: signals, logs of libraries, the cache of compiled programs."""

import gc
import logging
import os
import pathlib
import sys
import warnings

from crnas_jax.runtime import interruption


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

    Tracing fills the heap with objects that live long: looking at them all as often as Python does
    by default takes a tenth of the time before the first step.
    """
    gc.set_threshold(50_000, 10, 10)
    folder = (
        os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or pathlib.Path.home() / ".cache" / "crnas_jax" / "xla"
    )
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    if "jax" in sys.modules:  # it has read its environment
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))
