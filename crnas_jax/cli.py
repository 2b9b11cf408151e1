"""What scripts share: flags, compilation cache, status 2 and one line for a mistake."""

import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from crnas_jax.errors import UserError
from crnas_jax.runtime import interruption

_STOPPED = 128 + 15  # the shell's status of a process that SIGTERM ended
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def launch(
    action: Callable, require: Callable | None = None, is_dry: Callable[[], bool] = lambda: False
) -> None:
    """Run a script of the procedure.

    Args:
      action: function of the run of `--config` and `--workdir`.
      require: function that refuses configs without what the script needs, before anything is read
        or written.
      is_dry: whether the working folder is only looked at; called after flags are parsed.
    """
    from ml_collections import config_flags

    from crnas_jax.experiments.plan import plan
    from crnas_jax.experiments.steps import open_run

    config = config_flags.DEFINE_config_file(
        "config", None, "Config file, as configs/bccd.py or configs/bccd.py:gpu."
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "Folder of the run; the same command on it resumes."
    )

    def main():
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        if not pathlib.Path(file.partition(".py:")[0].removesuffix(".py") + ".py").is_file():
            raise UserError(file, "--config", "there is no such file", "give one of configs/")
        if not workdir.value:
            raise UserError("command line", "--workdir", "empty", "name a folder")
        interruption.listen()
        try:
            run = open_run(config.value, workdir.value, require, is_dry())
            print(plan(run), flush=True)
            action(run)
        except UserError as error:
            if error.where != "config":
                raise
            raise UserError(file, error.field, error.problem, error.remedy) from error

    run_script(main, ["config", "workdir"])


def launch_search(level: str) -> None:
    """Run the script of a search: `stage` or `operation`."""
    from crnas_jax.settings.run import require_search

    dry_run = flags.DEFINE_bool(
        "dry_run", False, "Print what the search would cost, and write nothing."
    )

    def main(run):
        from crnas_jax.experiments.crnas import search_operations, search_stage
        from crnas_jax.experiments.search_cost import search_cost

        if dry_run.value:
            print(json.dumps(search_cost(run, level)))
        else:
            print(search_stage(run) if level == "stage" else search_operations(run))

    launch(main, require_search, lambda: dry_run.value)


def run_script(main: Callable[[], None], required: Sequence[str]) -> None:
    """Parse the flags and call `main`.

    Exits with 2 and one line for a mistake, with 143 when asked to stop; any other exception is a
    bug and shows its traceback.

    Args:
      main: the script.
      required: flags that must be given.
    """
    # The repository root, so that configs can import each other from any folder.
    sys.path.insert(0, str(_ROOT))
    use_compilation_cache()

    def checked(_):
        if flags.FLAGS["verbosity"].value == 0:  # Orbax prints dozens of INFO lines a save
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except UserError as error:
            _fail(error)
        except interruption.Stopped as stopped:
            print(f"stopped: {stopped}; the same command goes on", file=sys.stderr)
            sys.exit(_STOPPED)

    flags.mark_flags_as_required(required)
    app.run(checked, flags_parser=_parse)


def _parse(arguments):
    """Parse flags as `absl` does, but report mistakes in one line, those in config files too."""
    if any(argument in ("-h", "--help", "--helpfull", "--helpshort") for argument in arguments):
        return app.parse_flags_with_usage(arguments)
    try:
        rest = flags.FLAGS(arguments)
    except Exception as error:  # a config is a program: it can raise anything
        _fail(_mistake(error))
    if len(rest) > 1:
        _fail(UserError("command line", rest[1], "is no flag", "give --flag=value"))
    return rest


def _mistake(error):
    """Return the UserError behind an exception while parsing flags and config."""
    from crnas_jax.settings.fields import RENAMED

    if isinstance(error, UserError):
        return error
    text = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
    text = " ".join(text.partition("Other fields present")[0].split()).strip("'\" ")[:300]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "configs" in pathlib.Path(frame.filename).parts or frame.name == "get_config"
    ]
    where, field = "command line", "flags"
    if isinstance(error, SyntaxError):
        where, field = error.filename, f"line {error.lineno}"
    elif frames:
        where, field = frames[-1].filename, f"line {frames[-1].lineno}"
    elif isinstance(error, KeyError | AttributeError):
        field = "unknown field"
    if isinstance(error, KeyError | AttributeError):
        old = next((word for word in re.findall(r"\w+", text) if word in RENAMED), None)
        if old:
            return UserError(where, field, f"{old!r} is now {RENAMED[old]!r}", "use the new name")
    remedy = "--help shows all flags"
    if "config" in flags.FLAGS:
        remedy = f"configs/base.py has all fields of a config, {remedy}"
    return UserError(where, field, text or type(error).__name__, remedy)


def _fail(error):
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def use_compilation_cache() -> None:
    """Store compiled programs in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    folder = (
        os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or pathlib.Path.home() / ".cache" / "crnas_jax" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
