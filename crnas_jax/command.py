"""What scripts share: flags, compilation cache, status 2 and one line for a mistake."""

import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from crnas_jax.errors import UserError
from crnas_jax.pipeline import Pipeline
from crnas_jax.settings import Settings

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, as configs/bccd.py or configs/bccd.py:gpu."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; the same command on it resumes."
)


def launch(action: Callable[[Pipeline], None]) -> None:
    """Runs a script: parses `--config` and `--workdir` and hands `action` the pipeline."""
    # The repository root, so that configs can import each other from any folder.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    use_compilation_cache()

    def main(_):
        if flags.FLAGS["verbosity"].value == 0:  # Orbax prints dozens of INFO lines a save
            logging.set_verbosity(logging.WARNING)
        try:
            pipeline = Pipeline(Settings(_CONFIG.value), pathlib.Path(_WORKDIR.value))
            print(pipeline.plan(), flush=True)
            action(pipeline)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


def use_compilation_cache() -> None:
    """Keeps compiled programs, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    folder = (
        os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or pathlib.Path.home() / ".cache" / "crnas_jax" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
