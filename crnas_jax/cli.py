"""What scripts share: flags, compilation cache, status 2 and one line for a mistake."""

import json
import os
import pathlib
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
    action: Callable, check: Callable | None = None, dry: Callable[[], bool] = lambda: False
) -> None:
    """Runs a script of the procedure.

    Args:
      action: what is done with the pipeline of `--config` and `--workdir`.
      check: what is done with the settings before anything is read or written.
      dry: whether the working folder is only looked at; asked when flags are parsed.
    """
    from ml_collections import config_flags

    from crnas_jax.experiments.crnas import Pipeline
    from crnas_jax.settings.run import Settings

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
            settings = Settings(config.value)
            pipeline = Pipeline(settings, pathlib.Path(workdir.value), check, dry())
            print(pipeline.plan(), flush=True)
            action(pipeline)
        except UserError as error:
            if error.where != "config":
                raise
            raise UserError(file, error.field, error.problem, error.remedy) from error

    run(main, ["config", "workdir"])


def launch_search(level: str) -> None:
    """Runs the script of a search: of `stage` or `operation`."""
    dry_run = flags.DEFINE_bool(
        "dry_run", False, "Say what the search would cost, and write nothing."
    )

    def main(pipeline):
        if dry_run.value:
            print(json.dumps(pipeline.search_cost(level)))
        else:
            print(pipeline.search_stage() if level == "stage" else pipeline.search_operations())

    launch(main, lambda settings: settings.require_search(), lambda: dry_run.value)


def run(main: Callable[[], None], required: Sequence[str]) -> None:
    """Parses the flags and calls `main`.

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
    """`absl`'s parsing with our way of saying what is wrong, in config files too."""
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
    """What an exception while parsing flags and config comes down to."""
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
    remedy = "--help shows all flags"
    if "config" in flags.FLAGS:
        remedy = f"configs/base.py has all fields of a config, {remedy}"
    return UserError(where, field, text or type(error).__name__, remedy)


def _fail(error):
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def use_compilation_cache() -> None:
    """Keeps compiled programs, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    folder = (
        os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or pathlib.Path.home() / ".cache" / "crnas_jax" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
