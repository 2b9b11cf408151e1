"""What a subcommand is, and what those that work in a folder share."""

import contextlib
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from crnas_jax.errors import UserError
from crnas_jax.parallel.supervisor import SupervisorOptions
from crnas_jax.runtime import team

# Flags of a typical run, for examples.
RUN = "--config=configs/bccd.py --config.data.folder=DATA --workdir=runs/mine"
PACKAGE = pathlib.Path(__file__).resolve().parents[1]


# Flags that may differ between hosts; fields of the config are compared as a whole.
_OWN = (
    *("workdir", "json", "coordinator", "num_processes", "process_id"),
    *("heartbeat_seconds", "hang_seconds", "restarts"),
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
      summary: what it does, in a line.
      example: flags of a typical call.
      define: function that defines its flags, given those to define them in and the arguments.
      run: function of the parsed flags.
      required: flags that must be given.
      has_config: whether it takes fields of a config.
      resumes: whether it saves and ends when asked to stop, and goes on when called again.
      is_joint: whether it may run on several hosts; it then has the flags of `define_hosts`.
    """

    summary: str
    example: str
    define: Callable[[flags.FlagValues, Sequence[str]], None]
    run: Callable[[flags.FlagValues], None]
    required: tuple[str, ...] = ()
    has_config: bool = False
    resumes: bool = False
    is_joint: bool = False


def experiment(
    summary: str,
    example: str,
    action: Callable,
    require: Callable[[ConfigDict, flags.FlagValues], None],
    goals: Callable[[ConfigDict, flags.FlagValues], Sequence[str]],
    define: Callable[[flags.FlagValues], None] = lambda values: None,
    is_dry: Callable[[flags.FlagValues], bool] = lambda values: False,
    on_cpu: bool = False,
) -> Command:
    """Return a command that works on a config in a folder.

    Args:
      summary: see `Command`.
      example: see `Command`.
      action: function of (run, flags) that returns the result, and its text for people; None for
        nothing to print.
      require: function of (config, flags) that refuses configs without what the command needs,
        before anything is read or written.
      goals: function of (config, flags) to the steps of `settings.step_keys` that the command
        wants.
      define: function that defines its own flags.
      is_dry: function of the flags that tells whether the folder is only looked at.
      on_cpu: whether this process leaves accelerators to others, which it starts; it works alone.
    """

    def define_all(values, arguments):
        flags.DEFINE_string(
            "workdir",
            None,
            "Folder of the run; the same command goes on there.",
            flag_values=values,
        )
        flags.DEFINE_bool(
            "redo",
            False,
            "Repeat what changed fields make necessary; what is there is set aside, not deleted.",
            flag_values=values,
        )
        define_json(values)
        if not on_cpu:
            define_hosts(values)
        define(values)
        define_config(values, arguments)

    def run(values):
        from crnas_jax.experiments import beginning, repeats
        from crnas_jax.experiments.plan import plan
        from crnas_jax.experiments.run import open_run

        if not values.workdir:
            raise UserError("command line", "--workdir", "missing", "name a folder")
        if on_cpu:
            import jax

            jax.config.update("jax_platforms", "cpu")
        output = sys.stdout
        # With --json nothing but the result goes to the standard output.
        progress = sys.stderr if values.json else sys.stdout
        with config_errors(values), contextlib.redirect_stdout(progress):
            own = {f"--{name}": str(values[name].value) for name in values if not _is_own(name)}
            team.require_alike({"command": summary, **own})
            work = open_run(
                values.config,
                values.workdir,
                lambda config: require(config, values),
                is_dry(values),
                values.redo,
            )
            try:
                wanted = goals(values.config, values)
                text = team.decide(plan, work, wanted)
                print(text, flush=True)
                if not is_dry(values):
                    team.decide(repeats.require_no_repeats, work, wanted)
                    work.record()
                    team.decide(beginning.record, work, text)
                answer = action(work, values)
                if answer is not None:
                    result, text = answer
                    print(json.dumps(result) if values.json else text, flush=True, file=output)
                if not is_dry(values):
                    team.decide(_write_report, work.path)
            finally:
                work.workdir.release()

    return Command(
        summary, example, define_all, run, (), has_config=True, resumes=True, is_joint=not on_cpu
    )


def _write_report(path):
    from crnas_jax.analysis.html import page
    from crnas_jax.analysis.record import Record

    try:
        print(f"the page about it is {page.write(Record.open(path))}", flush=True)
    except Exception as error:  # what was asked for is done
        text = f"{type(error).__name__}: {error}"
        print(f"WARNING: no report was written ({text}); crnas-jax report says more", flush=True)


def _is_own(flag):
    return flag in _OWN or flag.partition(".")[0] == "config"


def define_json(values: flags.FlagValues) -> None:
    """Define `--json`."""
    flags.DEFINE_bool(
        "json", False, "Print the result as JSON, with all digits.", flag_values=values
    )


def define_hosts(values: flags.FlagValues) -> None:
    """Define the flags of a command that several hosts may run together."""
    text = "host:port of the first process; where the launcher does not say it (docs/pods.md)."
    flags.DEFINE_string("coordinator", None, text, flag_values=values)
    text = "Number of processes, one for each host; beside --coordinator."
    flags.DEFINE_integer("num_processes", None, text, 1, flag_values=values)
    text = "Number of this process, from 0; beside --coordinator."
    flags.DEFINE_integer("process_id", None, text, 0, flag_values=values)
    defaults = SupervisorOptions()
    text = "Seconds of silence after which a host counts as lost."
    flags.DEFINE_integer(
        "heartbeat_seconds", defaults.heartbeat_seconds, text, 1, flag_values=values
    )
    text = "Longest wait for a step or another host, seconds; compilation is left out."
    flags.DEFINE_float("hang_seconds", defaults.hang_seconds, text, 0.1, flag_values=values)
    text = "How often to begin again after a host was lost."
    flags.DEFINE_integer("restarts", defaults.restarts, text, 0, flag_values=values)


def define_config(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Define `--config`, whose fields are flags too; without it, the config of `--workdir`."""
    stored = _stored_config(arguments)
    # The first entry stands for the program's name.
    argv = ["crnas-jax", *arguments]
    text = "Config file, such as configs/bccd.py or configs/bccd.py:gpu; without it the folder's."
    if stored is not None:
        config_flags.DEFINE_config_dict("config", stored, text, values, sys_argv=argv)
    else:
        config_flags.DEFINE_config_file("config", None, text, values, sys_argv=argv)


@contextlib.contextmanager
def config_errors(values: flags.FlagValues) -> Iterator[None]:
    """Name the file that the config comes from in errors about it."""
    place = config_place(values)
    try:
        yield
    except UserError as error:
        if error.where != "config":
            raise
        where, field = place, error.field
        if field.partition("[")[0] in values["config"].override_values:
            where, field = "command line", f"--config.{field}"
        placed = UserError(where, field, error.problem, error.remedy)
        placed.is_shared = error.is_shared
        raise placed from error


def config_place(values: flags.FlagValues) -> str:
    """Return the file that the config comes from, for messages.

    Raises:
      UserError: there is none.
    """
    if values.config is None and values.workdir and not pathlib.Path(values.workdir).exists():
        problem = "there is no such folder to go on in"
        raise UserError(values.workdir, "--workdir", problem, "give --config to begin one")
    if values.config is None:
        raise UserError(
            "command line", "--config", "missing", "give one of configs/, or a --workdir with one"
        )
    name = config_flags.get_config_filename(values["config"])
    # The config itself where there is no file.
    return name if isinstance(name, str) else str(pathlib.Path(values.workdir) / "config.json")


def config_root() -> pathlib.Path:
    """Return the folder that holds `configs/`: the repository, or the installed package's part."""
    repository = PACKAGE.parent
    is_repository = (repository / "configs" / "base.py").is_file()
    return repository if is_repository else PACKAGE / "shipped"


def find_config(text: str) -> str:
    """Return the path of a config, found from any folder, with what follows its colon.

    Args:
      text: `configs/bccd.py:gpu`, also without the folder or the suffix.

    Raises:
      UserError: there is no such file.
    """
    name, colon, argument = re.match(r"(.*?)(?:\.py)?(?:(:)(.*))?$", text).groups(default="")
    for folder in ("", config_root(), config_root() / "configs"):
        path = pathlib.Path(folder) / f"{name}.py"
        if name and path.is_file():
            return f"{path}{colon}{argument}"
    raise UserError(text, "--config", "there is no such file", "give one of configs/")


def _stored_config(arguments):
    """Return the config of the working folder where `--config` is not given."""
    from crnas_jax.runtime.workdir import read_config
    from crnas_jax.settings.fields import config_of

    if flag_value(arguments, "config") is not None:
        return None
    workdir = flag_value(arguments, "workdir")
    if not workdir or not (pathlib.Path(workdir) / "config.json").is_file():
        return None
    return config_of(read_config(workdir)["config"])


def flag_value(arguments: Sequence[str], name: str) -> str | None:
    """Return the last value of a flag in arguments that are not parsed yet."""
    value = None
    for index, argument in enumerate(arguments):
        head, equals, tail = argument.partition("=")
        if head in (f"--{name}", f"-{name}"):
            value = tail if equals else (*arguments, "")[index + 1]
    return value
