"""The command `crnas-jax` and its subcommands; the scripts call the same functions."""

import difflib
import functools
import importlib
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Sequence

from absl import flags

from crnas_jax import __version__
from crnas_jax.commands.command import Command, config_root, find_config
from crnas_jax.errors import UserError, disk_error
from crnas_jax.parallel.cluster import find_cluster
from crnas_jax.parallel.process import prepare
from crnas_jax.parallel.supervisor import BUG, LOST, STOPPED, SupervisorOptions, supervise
from crnas_jax.runtime import activity, interruption

_MISTAKE = 2
# Subcommands by the module of `commands` that holds them.
_MODULES = {
    "procedure": (
        *("run", "plan", "train-supernet", "search"),
        *("train-detector", "evaluate", "pretrain"),
    ),
    "spinenet": ("run-spinenet",),
    "studies": ("ranking-study", "compare-strategies", "compare-scores"),
    "predict": ("predict",),
    "tools": ("ap", "flops", "convert"),
    "data": ("prepare-data", "split-coco"),
    "export": ("export",),
    "draw": ("draw-arch",),
    "record": ("report", "status"),
    "fields": ("visualize-erf",),
}
COMMANDS = {name: module for module, names in _MODULES.items() for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the status of the process.

    That is 2, after one line, for a mistake that the user can mend, and 143 when asked to stop; any
    other exception is a bug and is raised.

    Args:
      argv: the subcommand and its flags; those of the process when None.
    """
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "--helpfull", "help"):
        print(_overview())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    try:
        return _run(name, load(name), arguments)
    except UserError as error:
        return _fail(error)


def load(name: str) -> Command:
    """Return a subcommand by name.

    Raises:
      UserError: there is none.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        remedy = f"did you mean {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}"
        raise UserError("command line", name, "is no command", remedy)
    return importlib.import_module(f"crnas_jax.commands.{COMMANDS[name]}").COMMANDS[name]


def script(name: str, *given: str) -> None:
    """Run a subcommand with the flags of the process, after those given, and end the process."""
    prepare_process(name)
    _end([name, *given, *sys.argv[1:]])


def console() -> None:
    """Run `crnas-jax`."""
    prepare_process(*sys.argv[1:2])
    _end(sys.argv[1:])


def _end(arguments):
    try:
        status = main(arguments)
    except BrokenPipeError:
        if arguments[0] in COMMANDS and load(arguments[0]).resumes:
            raise
        os._exit(128 + 13)  # who reads has enough, such as `head`
    except KeyboardInterrupt:  # commands that resume save first, and end otherwise
        status = 128 + 2
    if status == _MISTAKE:  # threads of libraries would go on about a disk that is full
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def prepare_process(name: str = "") -> None:
    """Set what concerns a whole process, see `process.prepare`.

    Args:
      name: the subcommand; those that cannot go on later end at once when asked to stop.
    """
    prepare(name in COMMANDS and load(name).resumes)


def _run(name, command, arguments):
    activity.begin(["crnas-jax", name, *arguments])
    root = str(config_root())
    if root not in sys.path:  # so that configs can import each other from any folder
        sys.path.insert(0, root)
    if any(re.fullmatch(r"--?h(elp(full|short)?)?", argument) for argument in arguments):
        print(_help(name, command))
        return 0
    values = _parsed(command, arguments)
    if not command.is_joint:
        return _attempt(command, values)
    cluster = find_cluster(values.coordinator, values.num_processes, values.process_id)
    if cluster is None:
        return _attempt(command, values)
    options = SupervisorOptions(values.heartbeat_seconds, values.hang_seconds, values.restarts)
    work = functools.partial(_work, command, values, cluster, options.heartbeat_seconds)
    return supervise(work, cluster.index, options)


def _work(command, values, cluster, heartbeat_seconds):
    """Do one host's part of a command, and end the process."""
    from crnas_jax.parallel.hosts import connect  # imports JAX, which `status` has no time for

    me = f"host {cluster.index}"
    try:
        hosts = connect(cluster, heartbeat_seconds, command.resumes)
    except Exception as error:
        print(f"error: {me}: {_first_line(error)}", file=sys.stderr, flush=True)
        return LOST
    try:
        hosts.leave(_attempt(command, values))
    except UserError as error:
        # What all hosts know is not told to the others.
        if error.is_shared:
            _fail(error)
        hosts.fail(_MISTAKE, "" if error.is_shared else f"error: {me}: {error}")
    except BaseException as error:
        hosts.await_verdict(error)
        traceback.print_exc()
        hosts.fail(BUG, f"error: {me}: {type(error).__name__}: {_first_line(error)}")


def _attempt(command, values):
    """Run a command; return the status."""
    try:
        command.run(values)
    except interruption.Stopped as stopped:
        print(f"stopped: {stopped}; the same command goes on", file=sys.stderr)
        return STOPPED
    except OSError as error:
        problem = disk_error(error)
        if problem is None:
            raise
        raise problem from error
    return 0


def _first_line(error):
    return (str(error).strip().splitlines() or [""])[0][:300]


def _fail(error):
    print(f"error: {error}", file=sys.stderr)
    return _MISTAKE


def _parsed(command, arguments):
    """Parse flags as absl does, but report mistakes in one line, those in config files too."""
    if command.has_config:
        arguments = [_with_path(argument) for argument in _last_of_each(arguments)]
    values = flags.FlagValues()
    try:
        with warnings.catch_warnings():  # ml_collections loads configs in a way that ages
            warnings.simplefilter("ignore", DeprecationWarning)
            command.define(values, arguments)
            rest = values(["crnas-jax", *arguments])
    except Exception as error:  # a config is a program: it can raise anything
        raise _mistake(error, command) from error
    if len(rest) > 1:
        remedy = "give --flag=value, once for each value"
        raise UserError("command line", rest[1], "is no flag", remedy)
    for name in command.required:
        if values[name].value in (None, "", []):
            raise UserError("command line", f"--{name}", "missing", "--help has an example")
    return values


def _with_path(argument):
    """Return `--config=FILE` with the file's path."""
    match = re.fullmatch(r"--?config=(.*)", argument)
    return f"--config={find_config(match[1])}" if match else argument


def _last_of_each(arguments):
    """Keep the last of several settings of one field: tuples would be joined."""
    settings, index = [], 0
    while index < len(arguments):
        match = re.match(r"--?(config(?:\.[\w.]+)?)(=)?", arguments[index])
        size = 1
        if match and not match[2] and not (*arguments, "--")[index + 1].startswith("--"):
            size = 2
        name = match[1] if match else (index,)
        settings = [setting for setting in settings if setting[0] != name]
        pair = arguments[index : index + size]
        if match and match[1] == "config":
            pair = ["=".join(pair)]
        settings.append((name, pair))
        index += size
    # The config comes before its fields.
    settings.sort(key=lambda setting: setting[0] != "config")
    return [argument for _, pair in settings for argument in pair]


def _mistake(error, command):
    """Return the UserError behind an exception while parsing flags and config."""
    from crnas_jax.settings.fields import RENAMED

    if isinstance(error, UserError):
        return error
    text = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
    text = " ".join(text.partition("Other fields present")[0].split())
    if re.fullmatch(r"(['\"]).*\1", text):  # a KeyError's message is quoted as a whole
        text = text[1:-1]
    text = text[:300]
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
    if command.has_config:
        remedy = f"{config_root() / 'configs' / 'base.py'} has all fields of a config, {remedy}"
    return UserError(where, field, text or type(error).__name__, remedy)


def _overview():
    """Return the list of subcommands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {load(name).summary}" for name in COMMANDS]
    return "\n".join(
        [
            "Computation reallocation for object detection: a detector whose backbone spends the "
            "same FLOPs better.",
            "",
            "crnas-jax COMMAND --flag=value ...; crnas-jax COMMAND --help lists the flags of one.",
            "",
            *lines,
        ]
    )


def _help(name, command):
    """Return the help of a subcommand: its own flags, and how to set a field."""
    values = flags.FlagValues()
    command.define(values, [])
    lines = [f"{command.summary}", "", f"  crnas-jax {name} {command.example}", "", "Flags:"]
    for flag_name in values:
        flag = values[flag_name]
        shown = f"--{flag.name}" if flag.boolean else f"--{flag.name}=..."
        about = re.sub(r"^<[^>]*>: |;\s+repeat this option.*$", "", " ".join(flag.help.split()))
        if flag.name in command.required:
            about += " Required."
        elif flag.default not in (None, False, ""):
            about += f" Default: {flag.default}."
        choices = getattr(flag.parser, "enum_values", None)
        if choices:
            about += f" One of {', '.join(choices)}."
        lines.append(f"  {shown:24} {about}")
    if command.has_config:
        lines += [
            "",
            "Every field of the config is a flag too, such as --config.seed=1,",
            "--config.data.folder=DATA or --config.supernet.dilations='(1, 2)';",
            f"{config_root() / 'configs' / 'base.py'} says what each means.",
        ]
    return "\n".join(lines)
