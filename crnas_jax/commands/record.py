"""Subcommands that look at a working folder without touching its run."""

import json
import pathlib

from absl import flags

from crnas_jax.commands.command import Command, define_json


def _workdir(values):
    flags.DEFINE_string("workdir", None, "Folder of a run, in any state.", flag_values=values)


def _report_flags(values, _):
    _workdir(values)
    text = "Show test photographs, while the data folder is there; --nophotographs leaves them out."
    flags.DEFINE_bool("photographs", None, text, flag_values=values)
    text = "File to write; report.html in the folder when not given."
    flags.DEFINE_string("output", None, text, flag_values=values)


def _report(values):
    from crnas_jax.analysis.html import page
    from crnas_jax.analysis.record import Record

    output = pathlib.Path(values.output) if values.output else None
    print(page.write(Record.open(values.workdir), values.photographs, output))


def _status_flags(values, _):
    _workdir(values)
    define_json(values)


def _status(values):
    from crnas_jax.analysis import status
    from crnas_jax.analysis.record import Record

    record = Record.open(values.workdir)
    print(json.dumps(status.status(record)) if values.json else status.text(record))


COMMANDS = {
    "report": Command(
        "Write report.html into a run's folder: one page with all that is known, to be sent on.",
        "--workdir=runs/mine",
        _report_flags,
        _report,
        ("workdir",),
    ),
    "status": Command(
        "Say how far a run is, when it ends and what it has found; from any terminal.",
        "--workdir=runs/mine",
        _status_flags,
        _status,
        ("workdir",),
    ),
}
